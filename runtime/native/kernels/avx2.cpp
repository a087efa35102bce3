// AVX2 with FMA: sixteen registers of 32 bytes, twelve of them sums.
#define GATEFX_ISA avx2
#define GATEFX_VECTOR_BYTES 32
#define GATEFX_DOWN_TOKENS 4
#define GATEFX_DOWN_RANKS 3
#define GATEFX_UP_TOKENS 4
#define GATEFX_UP_COLUMNS 3
#define GATEFX_LAYER_PANELS 1
#define GATEFX_LAYER_SUMS 12
#include "instantiate.h"
