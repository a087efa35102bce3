// What every machine of the architecture has: 16-byte vectors in at least sixteen registers (SSE2; NEON on aarch64).
#define GATEFX_ISA baseline
#define GATEFX_VECTOR_BYTES 16
#define GATEFX_DOWN_TOKENS 2
#define GATEFX_DOWN_RANKS 4
#define GATEFX_UP_TOKENS 2
#define GATEFX_UP_COLUMNS 4
#define GATEFX_LAYER_PANELS 1
#define GATEFX_LAYER_SUMS 12
#include "instantiate.h"
