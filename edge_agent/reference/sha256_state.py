"""SHA-256's constants from their definition, and its state after one block.

hashlib keeps the state after the first block to itself, and a GPU needs it.

Source: FIPS 180-4, sections 4.2.2 (constants: cube roots of primes), 5.3.3 (initial value: square
roots), 6.2.2 (compression).
"""

from math import isqrt

_MASK = 0xFFFFFFFF


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 2
    while len(found) < count:
        if all(number % prime for prime in found):
            found.append(number)
        number += 1
    return found


def _cube_root(number: int) -> int:
    low, high = 0, 1 << (number.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**3 <= number else (low, middle - 1)
    return low


ROUND_CONSTANTS = tuple(_cube_root(prime << 96) & _MASK for prime in _primes(64))
INITIAL_STATE = tuple(isqrt(prime << 64) & _MASK for prime in _primes(8))


def compress(state: tuple[int, ...], block: bytes) -> tuple[int, ...]:
    """Give the state after one block of 64 bytes."""
    assert len(block) == 64
    words = [int.from_bytes(block[at : at + 4], "big") for at in range(0, 64, 4)]
    for index in range(16, 64):
        near, far = words[index - 2], words[index - 15]
        mixed = _turn(near, 17) ^ _turn(near, 19) ^ (near >> 10)
        mixed += _turn(far, 7) ^ _turn(far, 18) ^ (far >> 3)
        words.append((mixed + words[index - 7] + words[index - 16]) & _MASK)
    a, b, c, d, e, f, g, h = state
    for constant, word in zip(ROUND_CONSTANTS, words, strict=True):
        one = h + (_turn(e, 6) ^ _turn(e, 11) ^ _turn(e, 25)) + ((e & f) ^ (~e & g))
        one += constant + word
        two = (_turn(a, 2) ^ _turn(a, 13) ^ _turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))
        a, b, c, d, e, f, g, h = (one + two) & _MASK, a, b, c, (d + one) & _MASK, e, f, g
    return tuple(
        (old + new) & _MASK for old, new in zip(state, (a, b, c, d, e, f, g, h), strict=True)
    )


def _turn(word: int, by: int) -> int:
    return (word >> by | word << (32 - by)) & _MASK
