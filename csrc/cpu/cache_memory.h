// Memory for the tiles that a forward caches for its backward.
#pragma once

#include "arguments.h"

namespace spcl {

// Returns an uninitialised float32 tensor (size,). Where it is large it lies in huge pages, and the
// process holds on to one such piece when it is freed: faulting pages in anew at every step would
// cost as much as the cached tiles save.
Tensor cache_memory(int64_t size);

// Frees the piece that is held.
void release_cache_memory();

}  // namespace spcl
