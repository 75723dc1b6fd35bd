// Pages of 2 MiB: of small ones, the packed rows of a large matrix need more than a CPU translates
// at once.
#pragma once

#include <cstddef>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace spcl {

constexpr size_t kHugePage = size_t{1} << 21;

// Advises the system of the huge pages in memory that starts with one; it may have them turned off.
inline void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

}  // namespace spcl
