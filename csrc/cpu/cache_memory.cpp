#include "cache_memory.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <cstdlib>
#include <mutex>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace spcl {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

struct Piece {
  void* memory = nullptr;
  size_t bytes = 0;
};

std::mutex held_mutex;
Piece held;  // guarded by held_mutex

// Takes the held piece if it is large enough: one that is too large is held either way.
Piece take(size_t bytes) {
  const std::lock_guard<std::mutex> lock(held_mutex);
  if (held.bytes < bytes) return {};
  return std::exchange(held, {});
}

// Holds the piece, or frees it if a larger one is held.
void give_back(Piece piece) {
  const std::lock_guard<std::mutex> lock(held_mutex);
  if (piece.bytes > held.bytes) std::swap(piece, held);
  std::free(piece.memory);
}

}  // namespace

at::Tensor cache_memory(int64_t size) {
  const size_t bytes = (size * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage;
  if (bytes < 2 * kHugePage) return at::empty({size}, at::kFloat);
  Piece piece = take(bytes);
  if (!piece.memory) {
    piece = {std::aligned_alloc(kHugePage, bytes), bytes};
    if (!piece.memory) return at::empty({size}, at::kFloat);  // which says what is missing
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    madvise(piece.memory, bytes, MADV_HUGEPAGE);  // only advice: it may be turned off
#endif
  }
  return at::from_blob(piece.memory, {size}, [piece](void*) { give_back(piece); }, at::kFloat);
}

void release_cache_memory() {
  const std::lock_guard<std::mutex> lock(held_mutex);
  std::free(std::exchange(held, {}).memory);
}

}  // namespace spcl
