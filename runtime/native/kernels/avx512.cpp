// AVX-512 (F, VL, DQ, BW): thirty-two registers of 64 bytes, twenty-four of them sums.
#ifndef GATEFX_ISA  // checks give the same tiles another name
#define GATEFX_ISA avx512
#endif
#define GATEFX_VECTOR_BYTES 64
#define GATEFX_DOWN_TOKENS 4
#define GATEFX_DOWN_RANKS 6
#define GATEFX_UP_TOKENS 6
#define GATEFX_UP_COLUMNS 4
#define GATEFX_LAYER_PANELS 4
#define GATEFX_LAYER_SUMS 24
#include "instantiate.h"
