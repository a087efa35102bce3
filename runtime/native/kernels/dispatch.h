// Which instruction set runs: the widest that this machine has, or one that was asked for.
#pragma once
#include "table.h"

namespace gatefx {

// The kernels in use. The first call chooses: what GATEFX_ISA in the environment names if the machine has it,
// else the widest set.
const Table& kernels();

// Use another set from now on; false, and no change, where this machine or build does not have it.
bool use_isa(const char* name);

// The sets that this machine and build have, widest first, ended by nullptr.
const char* const* available_isas();

}  // namespace gatefx
