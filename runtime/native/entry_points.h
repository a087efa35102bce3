// What Python asks either library. Included once by each.
#pragma once
#include "kernels/dispatch.h"

#define GATEFX_EXPORT extern "C" __attribute__((visibility("default")))

GATEFX_EXPORT int gatefx_abi_version() { return GATEFX_ABI_VERSION; }
// The instruction set in use; those that could be, widest first, ended by null; use another one (0 where it is not there).
GATEFX_EXPORT const char* gatefx_isa() { return gatefx::kernels().name; }
GATEFX_EXPORT const char* const* gatefx_isas() { return gatefx::available_isas(); }
GATEFX_EXPORT int gatefx_use_isa(const char* name) { return gatefx::use_isa(name) ? 1 : 0; }
