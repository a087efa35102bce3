// The tiles and vectors of AVX-512 in the instructions of any machine: all of it but the instructions themselves is
// checked where there is no AVX-512.
#define GATEFX_ISA avx512_tiles
#include "../kernels/avx512.cpp"
