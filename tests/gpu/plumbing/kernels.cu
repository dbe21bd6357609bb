// The kernels of the plumbing test: one that stands in for a network, and the operators of a ResNet.
// NVRTC compiles them for a card; a C compiler compiles the same lines into the simulated driver
// (driver.c), which runs one thread of them after the other.

#ifdef __CUDACC_RTC__
#define KERNEL extern "C" __global__ void
#define HELPER static __device__
#else
#define KERNEL void
#define HELPER static
#endif

// The types of values: uint8, float32, float16.
enum { U8, F32, F16 };

struct Arguments {
    const void *x, *y, *z;
    void *out;
    // Values of `out`.
    int n;
    // The types of `x` and of `out`; `y` and `z` have the type of `x`.
    int from, to;
    // What each kernel says.
    int size[11];
};

#define INDEX ((int)(blockIdx.x * blockDim.x + threadIdx.x))

#ifdef __CUDACC_RTC__
HELPER float widen(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

HELPER unsigned short narrow(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
HELPER float widen(unsigned short bits) {
    _Float16 value;
    __builtin_memcpy(&value, &bits, 2);
    return (float)value;
}

HELPER unsigned short narrow(float value) {
    _Float16 half = (_Float16)value;
    unsigned short bits;
    __builtin_memcpy(&bits, &half, 2);
    return bits;
}
#endif

HELPER float load(const void *values, int type, long long i) {
    switch (type) {
    case U8: return ((const unsigned char *)values)[i];
    case F32: return ((const float *)values)[i];
    default: return widen(((const unsigned short *)values)[i]);
    }
}

HELPER void store(void *values, int type, long long i, float value) {
    switch (type) {
    case U8: ((unsigned char *)values)[i] = (unsigned char)value; break;
    case F32: ((float *)values)[i] = value; break;
    default: ((unsigned short *)values)[i] = narrow(value);
    }
}

// Every logit depends on every `classes`-th byte of its image and on their order; it is a whole number
// that float32 holds. size: bytes of an image, classes, rounds.
KERNEL mix(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    int len = a.size[0], classes = a.size[1], rounds = a.size[2];
    const unsigned char *image = (const unsigned char *)a.x + (long long)(i / classes) * len;
    unsigned sum = 0;
    for (int round = 0; round < rounds; round++)
        for (int p = i % classes; p < len; p += classes) sum = sum * 31u + image[p] + round;
    ((float *)a.out)[i] = (float)(sum >> 8);
}

// Another type.
KERNEL cast(struct Arguments a) {
    int i = INDEX;
    if (i < a.n) store(a.out, a.to, i, load(a.x, a.from, i));
}

// [n, height, width, channels] to [n, channels, height, width]. size: channels, height × width.
KERNEL planes(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    int channels = a.size[0], pixels = a.size[1];
    int image = i / (channels * pixels), channel = i / pixels % channels, pixel = i % pixels;
    long long from = ((long long)image * pixels + pixel) * channels + channel;
    store(a.out, a.to, i, load(a.x, a.from, from));
}

// x + y or x × y. size: whether to multiply; how many values y has, or 0 for as many as x; how many
// values of x in a row use the same one of y.
KERNEL combine(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    int other = a.size[1] ? i / a.size[2] % a.size[1] : i;
    float x = load(a.x, a.from, i), y = load(a.y, a.from, other);
    store(a.out, a.to, i, a.size[0] ? x * y : x + y);
}

KERNEL relu(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    float x = load(a.x, a.from, i);
    store(a.out, a.to, i, x > 0 ? x : 0);
}

// Weights y: [outputs, inputs, kernel, kernel], bias z. size: inputs, height, width, outputs, their
// height, their width, kernel, stride, padding.
KERNEL convolve(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    int inputs = a.size[0], height = a.size[1], width = a.size[2], outputs = a.size[3];
    int rows = a.size[4], columns = a.size[5], kernel = a.size[6], stride = a.size[7];
    int column = i % columns, row = i / columns % rows;
    int output = i / (columns * rows) % outputs, image = i / (columns * rows * outputs);
    int top = row * stride - a.size[8], left = column * stride - a.size[8];
    float sum = load(a.z, a.from, output);
    for (int input = 0; input < inputs; input++)
        for (int r = 0; r < kernel; r++) {
            if (top + r < 0 || top + r >= height) continue;
            long long line = (((long long)image * inputs + input) * height + top + r) * width;
            long long weight = ((long long)(output * inputs + input) * kernel + r) * kernel;
            for (int c = 0; c < kernel; c++)
                if (left + c >= 0 && left + c < width)
                    sum += load(a.x, a.from, line + left + c) * load(a.y, a.from, weight + c);
        }
    store(a.out, a.to, i, sum);
}

// size: height, width, rows, columns, kernel, stride, padding.
KERNEL pool(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    int height = a.size[0], width = a.size[1], rows = a.size[2], columns = a.size[3];
    int kernel = a.size[4], top = i / columns % rows * a.size[5] - a.size[6];
    int left = i % columns * a.size[5] - a.size[6];
    long long plane = (long long)(i / (columns * rows)) * height * width;
    float largest = -65504;
    for (int r = top; r < top + kernel; r++)
        for (int c = left; c < left + kernel; c++)
            if (r >= 0 && r < height && c >= 0 && c < width) {
                float x = load(a.x, a.from, plane + (long long)r * width + c);
                largest = x > largest ? x : largest;
            }
    store(a.out, a.to, i, largest);
}

// The mean of each plane. size: values of a plane.
KERNEL average(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    float sum = 0;
    for (int p = 0; p < a.size[0]; p++) sum += load(a.x, a.from, (long long)i * a.size[0] + p);
    store(a.out, a.to, i, sum / a.size[0]);
}

// Weights y: [outputs, inputs], bias z. size: inputs, outputs.
KERNEL linear(struct Arguments a) {
    int i = INDEX;
    if (i >= a.n) return;
    int inputs = a.size[0], output = i % a.size[1];
    long long x = (long long)(i / a.size[1]) * inputs, y = (long long)output * inputs;
    float sum = load(a.z, a.from, output);
    for (int p = 0; p < inputs; p++) sum += load(a.x, a.from, x + p) * load(a.y, a.from, y + p);
    store(a.out, a.to, i, sum);
}
