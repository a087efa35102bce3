// NEON on aarch64: thirty-two registers of 16 bytes, twenty-four of them sums.
#define GATEFX_ISA neon
#define GATEFX_VECTOR_BYTES 16
#define GATEFX_DOWN_TOKENS 4
#define GATEFX_DOWN_RANKS 6
#define GATEFX_UP_TOKENS 6
#define GATEFX_UP_COLUMNS 4
#define GATEFX_LAYER_PANELS 1
#define GATEFX_LAYER_SUMS 24
#include "instantiate.h"
