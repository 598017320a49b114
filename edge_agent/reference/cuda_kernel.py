"""The CUDA source of the miner: double SHA-256 of headers that differ in their nonce.

It is plain C++ but for a few CUDA names, so that tests run it on a CPU through a compiler.
"""

from edge_agent.reference.sha256_state import INITIAL_STATE, ROUND_CONSTANTS

KERNEL_NAME = "scan"
FOUND_MAX = 1_020
POLL_NONCES = 4_096
LOOK_NONCES = 4
OUT_WORDS = 4 + FOUND_MAX

_TEMPLATE = r"""
typedef unsigned int u32;
typedef unsigned long long u64;

__device__ __constant__ u32 K[64] = {%(constants)s};

__device__ __forceinline__ u32 turn(u32 x, int n) { return (x >> n) | (x << (32 - n)); }
__device__ __forceinline__ u32 swap(u32 x) {
  return (x >> 24) | ((x >> 8) & 0xff00u) | ((x << 8) & 0xff0000u) | (x << 24);
}

__device__ __forceinline__ void compress(u32 *state, u32 *w) {
  u32 a = state[0], b = state[1], c = state[2], d = state[3];
  u32 e = state[4], f = state[5], g = state[6], h = state[7];
#pragma unroll
  for (int i = 0; i < 64; i++) {
    u32 word;
    if (i < 16) {
      word = w[i];
    } else {
      u32 near = w[(i - 2) & 15], far = w[(i - 15) & 15];
      word = w[i & 15] + w[(i - 7) & 15];
      word += turn(near, 17) ^ turn(near, 19) ^ (near >> 10);
      word += turn(far, 7) ^ turn(far, 18) ^ (far >> 3);
      w[i & 15] = word;
    }
    u32 one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + word;
    u32 two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g; g = f; f = e; e = d + one; d = c; c = b; b = a; a = one + two;
  }
  state[0] += a; state[1] += b; state[2] += c; state[3] += d;
  state[4] += e; state[5] += f; state[6] += g; state[7] += h;
}

// fixed: 8 words of state after the first block, 3 words of the second block, 8 words of the
// target from the highest down. out[0] counts what was found, out[2..3] what was tried (64 bit),
// out[4..] are the nonces.
extern "C" __global__ void scan(const u32 *fixed, u32 first, u64 count, u32 *out,
                                const volatile u32 *stop) {
  u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  u64 step = (u64)gridDim.x * blockDim.x;
  u64 done = 0;
  // All threads step together, so every thread looks after the grid tried so many nonces; but no
  // thread at each of its own: a look is a read over PCIe by every warp, and at some 3 GH/s of a
  // full grid they would be 10^8 a second.
  u64 look_every = %(poll)du / step;
  if (look_every < %(look)du) look_every = %(look)du;
  for (; at < count; at += step) {
    if (done %% look_every == 0 && *stop) break;
    done++;
    u32 nonce = first + (u32)at;
    u32 state[8], w[16];
    for (int i = 0; i < 8; i++) state[i] = fixed[i];
    for (int i = 0; i < 3; i++) w[i] = fixed[8 + i];
    w[3] = swap(nonce);
    w[4] = 0x80000000u;
    for (int i = 5; i < 15; i++) w[i] = 0;
    w[15] = 640;
    compress(state, w);
    for (int i = 0; i < 8; i++) w[i] = state[i];
    w[8] = 0x80000000u;
    for (int i = 9; i < 15; i++) w[i] = 0;
    w[15] = 256;
    const u32 initial[8] = {%(initial)s};
    for (int i = 0; i < 8; i++) state[i] = initial[i];
    compress(state, w);
    bool meets = true;
    for (int i = 0; i < 8; i++) {
      u32 word = swap(state[7 - i]), limit = fixed[11 + i];
      if (word != limit) { meets = word < limit; break; }
    }
    if (meets) {
      u32 slot = atomicAdd(out, 1u);
      if (slot < %(found)du) out[4 + slot] = nonce;
    }
  }
  atomicAdd((u64 *)(out + 2), done);
}
"""


def kernel_source() -> str:
    """Give the source with its constants filled in."""
    return _TEMPLATE % {
        "constants": _list(ROUND_CONSTANTS),
        "initial": _list(INITIAL_STATE),
        "poll": POLL_NONCES,
        "look": LOOK_NONCES,
        "found": FOUND_MAX,
    }


def _list(words: tuple[int, ...]) -> str:
    return ", ".join(f"0x{word:08x}u" for word in words)
