// Adds a bias and a row to each row of the residual stream, in place, and writes the layer norm of the sum.
//
// One block computes one row; each thread has 8 neighbouring numbers of 16 bits, which it reads and writes at once.
// Sums are float32. No header is needed, so a machine without the CUDA toolkit can compile it.
//
// BFLOAT16 is defined for bfloat16; otherwise the numbers are float16.

__device__ inline float low(unsigned pair) {
#ifdef BFLOAT16
  return __uint_as_float(pair << 16);
#else
  float value;
  asm("{.reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(value) : "r"(pair));
  return value;
#endif
}

__device__ inline float high(unsigned pair) {
#ifdef BFLOAT16
  return __uint_as_float(pair & 0xffff0000u);
#else
  return low(pair >> 16);
#endif
}

__device__ inline unsigned pack(float low, float high) {
  unsigned pair;
#ifdef BFLOAT16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  // Not cvt.rn.f16x2.f32, which a T4 does not have.
  asm("{.reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high};}"
      : "=r"(pair) : "f"(low), "f"(high));
#endif
  return pair;
}

__device__ inline void unpack8(uint4 packed, float* values) {
  const unsigned pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    values[2 * i] = low(pairs[i]);
    values[2 * i + 1] = high(pairs[i]);
  }
}

__device__ inline uint4 pack8(const float* values) {
  return make_uint4(pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]),
                    pack(values[6], values[7]));
}

// Returns the sum over the block's threads, of which there are whole warps, at most 32.
__device__ inline float sum_of_block(float value, float* of_warps) {
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(0xffffffffu, value, offset);
  if ((threadIdx.x & 31) == 0) of_warps[threadIdx.x >> 5] = value;
  __syncthreads();
  float sum = 0.f;
  for (int warp = 0; warp < blockDim.x >> 5; warp++) sum += of_warps[warp];
  return sum;
}

// width: numbers in a row, a multiple of 8 and at most 8 times the block's threads.
extern "C" __global__ void add_norm(uint4* x, const uint4* added, const uint4* bias, const uint4* weight,
                                    const uint4* shift, uint4* normed, int width, double eps) {
  __shared__ float sums[32], squares[32];
  const int columns = width / 8;
  const int column = threadIdx.x;
  const bool is_inside = column < columns;
  const long long position = (long long)blockIdx.x * columns + column;
  float row[8] = {0.f}, other[8], third[8];
  float sum = 0.f, square = 0.f;
  if (is_inside) {
    unpack8(x[position], row);
    unpack8(added[position], other);
    unpack8(bias[column], third);
#pragma unroll
    for (int i = 0; i < 8; i++) row[i] += other[i] + third[i];
    const uint4 rounded = pack8(row);
    x[position] = rounded;
    unpack8(rounded, row);  // the norm is that of what the next layer adds to
#pragma unroll
    for (int i = 0; i < 8; i++) sum += row[i];
  }
  const float mean = sum_of_block(sum, sums) / width;
  if (is_inside) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      row[i] -= mean;
      square += row[i] * row[i];
    }
  }
  const float scale = rsqrtf(sum_of_block(square, squares) / width + (float)eps);
  if (is_inside) {
    unpack8(weight[column], other);
    unpack8(shift[column], third);
#pragma unroll
    for (int i = 0; i < 8; i++) row[i] = row[i] * scale * other[i] + third[i];
    normed[position] = pack8(row);
  }
}
