/* base/crc32.c: CRC-32 of IEEE 802.3. Sixteen bytes per step with tables, and for the rest eight and four; or with carry-less
 * multiplication on x86. Eight bytes per step with the CRC instruction of ARMv8.
 *
 * Invariant: step_table[k][b] is the CRC of byte b followed by k zero bytes, so the lookups of one step are independent. The
 * CRC is linear over XOR: eight powers of two determine a row of 256 values, so only those are listed here.
 */
#include "base/crc32.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <wmmintrin.h>
#endif

#define STEP_BYTES 16u
#define FOLD_BYTES_MIN 48u /* for fewer bytes the tables would do most of the work anyway */

/* SPREADn(v, ...) is the 2^n values v ^ (any of the n powers), in the order of the index bits. */
#define SPREAD1(v, a) (v), ((v) ^ (a))
#define SPREAD2(v, a, b) SPREAD1(v, a), SPREAD1((v) ^ (b), a)
#define SPREAD3(v, a, b, c) SPREAD2(v, a, b), SPREAD2((v) ^ (c), a, b)
#define SPREAD4(v, a, b, c, d) SPREAD3(v, a, b, c), SPREAD3((v) ^ (d), a, b, c)
#define SPREAD5(v, a, b, c, d, e) SPREAD4(v, a, b, c, d), SPREAD4((v) ^ (e), a, b, c, d)
#define SPREAD6(v, a, b, c, d, e, f) SPREAD5(v, a, b, c, d, e), SPREAD5((v) ^ (f), a, b, c, d, e)
#define SPREAD7(v, a, b, c, d, e, f, g) SPREAD6(v, a, b, c, d, e, f), SPREAD6((v) ^ (g), a, b, c, d, e, f)
#define ROW(a, b, c, d, e, f, g, h)                                                                                              \
    { SPREAD7(0u, a, b, c, d, e, f, g), SPREAD7(h, a, b, c, d, e, f, g) }

static const uint32_t step_table[STEP_BYTES][256] = {
    ROW(0x77073096u, 0xee0e612cu, 0x076dc419u, 0x0edb8832u, 0x1db71064u, 0x3b6e20c8u, 0x76dc4190u, 0xedb88320u),
    ROW(0x191b3141u, 0x32366282u, 0x646cc504u, 0xc8d98a08u, 0x4ac21251u, 0x958424a2u, 0xf0794f05u, 0x3b83984bu),
    ROW(0x01c26a37u, 0x0384d46eu, 0x0709a8dcu, 0x0e1351b8u, 0x1c26a370u, 0x384d46e0u, 0x709a8dc0u, 0xe1351b80u),
    ROW(0xb8bc6765u, 0xaa09c88bu, 0x8f629757u, 0xc5b428efu, 0x5019579fu, 0xa032af3eu, 0x9b14583du, 0xed59b63bu),
    ROW(0x3d6029b0u, 0x7ac05360u, 0xf580a6c0u, 0x30704bc1u, 0x60e09782u, 0xc1c12f04u, 0x58f35849u, 0xb1e6b092u),
    ROW(0xcb5cd3a5u, 0x4dc8a10bu, 0x9b914216u, 0xec53826du, 0x03d6029bu, 0x07ac0536u, 0x0f580a6cu, 0x1eb014d8u),
    ROW(0xa6770bb4u, 0x979f1129u, 0xf44f2413u, 0x33ef4e67u, 0x67de9cceu, 0xcfbd399cu, 0x440b7579u, 0x8816eaf2u),
    ROW(0xccaa009eu, 0x4225077du, 0x844a0efau, 0xd3e51bb5u, 0x7cbb312bu, 0xf9766256u, 0x299dc2edu, 0x533b85dau),
    ROW(0x177b1443u, 0x2ef62886u, 0x5dec510cu, 0xbbd8a218u, 0xacc04271u, 0x82f182a3u, 0xde920307u, 0x6655004fu),
    ROW(0xefc26b3eu, 0x04f5d03du, 0x09eba07au, 0x13d740f4u, 0x27ae81e8u, 0x4f5d03d0u, 0x9eba07a0u, 0xe6050901u),
    ROW(0xc18edfc0u, 0x586cb9c1u, 0xb0d97382u, 0xbac3e145u, 0xaef6c4cbu, 0x869c8fd7u, 0xd64819efu, 0x77e1359fu),
    ROW(0x9ba54c6fu, 0xec3b9e9fu, 0x03063b7fu, 0x060c76feu, 0x0c18edfcu, 0x1831dbf8u, 0x3063b7f0u, 0x60c76fe0u),
    ROW(0xdd96d985u, 0x605cb54bu, 0xc0b96a96u, 0x5a03d36du, 0xb407a6dau, 0xb37e4bf5u, 0xbd8d91abu, 0xa06a2517u),
    ROW(0x9d0fe176u, 0xe16ec4adu, 0x19ac8f1bu, 0x33591e36u, 0x66b23c6cu, 0xcd6478d8u, 0x41b9f7f1u, 0x8373efe2u),
    ROW(0xb9fbdbe8u, 0xa886b191u, 0x8a7c6563u, 0xcf89cc87u, 0x44629f4fu, 0x88c53e9eu, 0xcafb7b7du, 0x4e87f0bbu),
    ROW(0xae689191u, 0x87a02563u, 0xd4314c87u, 0x73139f4fu, 0xe6273e9eu, 0x173f7b7du, 0x2e7ef6fau, 0x5cfdedf4u),
};

static uint32_t update_by_table(uint32_t crc, const uint8_t *p, uint64_t size) {
    while (size >= STEP_BYTES) {
        uint32_t a = load_u32(p) ^ crc, b = load_u32(p + 4), c = load_u32(p + 8), d = load_u32(p + 12);
        crc = step_table[15][a & 255] ^ step_table[14][a >> 8 & 255] ^ step_table[13][a >> 16 & 255] ^ step_table[12][a >> 24] ^
              step_table[11][b & 255] ^ step_table[10][b >> 8 & 255] ^ step_table[9][b >> 16 & 255] ^ step_table[8][b >> 24] ^
              step_table[7][c & 255] ^ step_table[6][c >> 8 & 255] ^ step_table[5][c >> 16 & 255] ^ step_table[4][c >> 24] ^
              step_table[3][d & 255] ^ step_table[2][d >> 8 & 255] ^ step_table[1][d >> 16 & 255] ^ step_table[0][d >> 24];
        p += STEP_BYTES;
        size -= STEP_BYTES;
    }
    if (size >= 8) {
        uint32_t a = load_u32(p) ^ crc, b = load_u32(p + 4);
        crc = step_table[7][a & 255] ^ step_table[6][a >> 8 & 255] ^ step_table[5][a >> 16 & 255] ^ step_table[4][a >> 24] ^
              step_table[3][b & 255] ^ step_table[2][b >> 8 & 255] ^ step_table[1][b >> 16 & 255] ^ step_table[0][b >> 24];
        p += 8;
        size -= 8;
    }
    if (size >= 4) {
        uint32_t a = load_u32(p) ^ crc;
        crc = step_table[3][a & 255] ^ step_table[2][a >> 8 & 255] ^ step_table[1][a >> 16 & 255] ^ step_table[0][a >> 24];
        p += 4;
        size -= 4;
    }
    while (size--) crc = crc >> 8 ^ step_table[0][(crc ^ *p++) & 255];
    return crc;
}

#if defined(__x86_64__)

#define TARGET_FOLD __attribute__((target("pclmul")))

/* Only the remainder of the message modulo the CRC's polynomial P matters. So `x` can be moved over the next sixteen bytes:
 * its halves are multiplied by the remainders of x^160 and x^96 modulo P, and the products are added to those bytes. The
 * last sixteen bytes go through the tables. The factors are bit-reflected and shifted by one, because the product of two
 * reflected numbers is one bit short. After Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ
 * Instruction", Intel, 2009. */
TARGET_FOLD static uint32_t update_by_folding(uint32_t crc, const uint8_t *p, uint64_t size) {
    const __m128i over_next = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    uint8_t last[STEP_BYTES];
    __m128i x = _mm_xor_si128(_mm_loadu_si128((const __m128i *)(const void *)p), _mm_cvtsi32_si128((int)crc));
    for (p += STEP_BYTES, size -= STEP_BYTES; size >= STEP_BYTES; p += STEP_BYTES, size -= STEP_BYTES) {
        __m128i low = _mm_clmulepi64_si128(x, over_next, 0x00), high = _mm_clmulepi64_si128(x, over_next, 0x11);
        x = _mm_xor_si128(_mm_xor_si128(low, high), _mm_loadu_si128((const __m128i *)(const void *)p));
    }
    _mm_storeu_si128((__m128i *)(void *)last, x);
    return update_by_table(update_by_table(0, last, STEP_BYTES), p, size);
}

/* Checked on each call: reads a value that the compiler's runtime determined at load time. */
static bool has_multiplication(void) { return __builtin_cpu_supports("pclmul"); }

#elif defined(__aarch64__)

#if defined(__clang__)
#define TARGET_CRC __attribute__((target("crc")))
#define CRC_OF_8(crc, word) __builtin_arm_crc32d(crc, word)
#define CRC_OF_1(crc, byte) __builtin_arm_crc32b(crc, byte)
#else
#define TARGET_CRC __attribute__((target("+crc")))
#define CRC_OF_8(crc, word) __builtin_aarch64_crc32x(crc, word)
#define CRC_OF_1(crc, byte) __builtin_aarch64_crc32b(crc, byte)
#endif

TARGET_CRC static uint32_t update_by_instruction(uint32_t crc, const uint8_t *p, uint64_t size) {
    for (; size >= 8; size -= 8, p += 8) crc = CRC_OF_8(crc, load_u64(p));
    while (size--) crc = CRC_OF_1(crc, *p++);
    return crc;
}

/* Checked on each call: getauxval reads a vector that the loader has already mapped. A cached result would be a global. */
static bool has_instruction(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & (1ul << 7)) != 0; /* HWCAP_CRC32 */
#elif defined(__APPLE__)
    return true; /* every 64-bit Apple processor since the A10 and all of the M line */
#else
    return false;
#endif
}

#endif

uint32_t crc32_update(uint32_t crc, const uint8_t *bytes, uint64_t size) {
#if defined(__x86_64__)
    if (size >= FOLD_BYTES_MIN && has_multiplication()) return ~update_by_folding(~crc, bytes, size);
#elif defined(__aarch64__)
    if (size >= STEP_BYTES && has_instruction()) return ~update_by_instruction(~crc, bytes, size);
#endif
    return ~update_by_table(~crc, bytes, size);
}
