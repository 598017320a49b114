/* Double SHA-256 of an 80-byte block header, one nonce after another, from a midstate.
 *
 * Compiled by NVRTC for the GPU; tests compile it as C++ too, so that it is held to hashlib without
 * one. Source of the constants: FIPS 180-4.
 */
typedef unsigned int u32;

#define DEVICE __device__ __forceinline__
#define TABLE __constant__

TABLE u32 K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

TABLE u32 FIRST[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

DEVICE u32 ror(u32 x, int n) { return (x >> n) | (x << (32 - n)); }

DEVICE u32 flip(u32 x) {
    return (x >> 24) | ((x >> 8) & 0xff00u) | ((x << 8) & 0xff0000u) | (x << 24);
}

/* Take one block of 16 big-endian words into the state; the words are used up. */
DEVICE void compress(u32 *state, u32 *w) {
    u32 a = state[0], b = state[1], c = state[2], d = state[3];
    u32 e = state[4], f = state[5], g = state[6], h = state[7];
    /* The places in w must be known when compiling, or it lies in memory instead of registers. */
#pragma unroll
    for (int at = 0; at < 64; at++) {
        u32 word = w[at & 15];
        if (at >= 16) {
            u32 near = w[(at + 1) & 15], far = w[(at + 14) & 15];
            word += (ror(near, 7) ^ ror(near, 18) ^ (near >> 3)) + w[(at + 9) & 15] +
                    (ror(far, 17) ^ ror(far, 19) ^ (far >> 10));
            w[at & 15] = word;
        }
        u32 t1 = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + ((e & f) ^ (~e & g)) + K[at] + word;
        u32 t2 = (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

/* midstate: after the first 64 bytes; tail: the next three words; out: the eight words of the hash. */
DEVICE void sha256d(const u32 *midstate, const u32 *tail, u32 nonce, u32 *out) {
    u32 inner[8], w[16];
    for (int at = 0; at < 8; at++) inner[at] = midstate[at];
    for (int at = 0; at < 16; at++) w[at] = 0;
    w[0] = tail[0], w[1] = tail[1], w[2] = tail[2], w[3] = flip(nonce);
    w[4] = 0x80000000u, w[15] = 640;
    compress(inner, w);
    for (int at = 0; at < 8; at++) w[at] = inner[at], out[at] = FIRST[at];
    for (int at = 8; at < 16; at++) w[at] = 0;
    w[8] = 0x80000000u, w[15] = 256;
    compress(out, w);
}

/* Every digest of a small batch, for checking. */
extern "C" __global__ void digests(const u32 *midstate, const u32 *tail, u32 first, u32 count,
                                   u32 *out) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < count) sha256d(midstate, tail, first + at, out + 8 * at);
}

/* Hash count nonces per thread; keep those whose hash ends in enough zeros. The stop word, where
 * there is one, is looked at every 4 nonces of a thread, 1,024 of a block: a fraction of a ms. */
extern "C" __global__ void search(const u32 *midstate, const u32 *tail, u32 first, u32 count,
                                  u32 limit, u32 *found, const volatile int *stop) {
    u32 thread = blockIdx.x * blockDim.x + threadIdx.x;
    u32 base = first + thread * count;
    for (u32 at = 0; at < count; at++) {
        u32 hash[8];
        if (stop != 0 && (at & 3u) == 0 && *stop != 0) return;
        sha256d(midstate, tail, base + at, hash);
        if (flip(hash[7]) <= limit) {
            u32 place = atomicAdd(found, 1u);
            if (place < 15) found[1 + place] = base + at;
        }
    }
}
