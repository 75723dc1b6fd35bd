#include "cache_memory.h"

#if defined(_WIN32)  // no weak symbols there, so nothing that only later releases of PyTorch have

namespace spcl {
Tensor cache_memory(int64_t size) { return empty({size}); }
void release_cache_memory() {}
}  // namespace spcl

#else

#include <cstdlib>
#include <mutex>
#include <utility>

#include "huge_pages.h"

// Of PyTorch 2.11 and later: null before, when nothing says that a tensor has been freed.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset,
    int32_t dtype, int32_t device_type, int32_t device_index, AtenTensorHandle* out, int32_t layout,
    const uint8_t* metadata, int64_t metadata_size, void (*deleter)(void* data, void* context),
    void* context);

namespace spcl {
namespace {

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

// Returns a tensor that gives the piece back when it is freed.
Tensor tensor_of(Piece piece, int64_t size) {
  const auto free = [](void* memory, void* bytes) {
    give_back({memory, reinterpret_cast<size_t>(bytes)});
  };
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(
      torch_from_blob(piece.memory, /*ndim=*/1, &size, &stride, /*storage_offset=*/0,
                      aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), /*device_index=*/-1,
                      &handle, aoti_torch_layout_strided(), /*metadata=*/nullptr,
                      /*metadata_size=*/0, free, reinterpret_cast<void*>(piece.bytes)));
  return Tensor(handle);
}

}  // namespace

Tensor cache_memory(int64_t size) {
  const size_t bytes = (size * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage;
  if (bytes < 2 * kHugePage || !torch_from_blob) return empty({size});
  Piece piece = take(bytes);
  if (!piece.memory) {
    piece = {std::aligned_alloc(kHugePage, bytes), bytes};
    if (!piece.memory) return empty({size});  // which says what is missing
    advise_huge_pages(piece.memory, bytes);
  }
  return tensor_of(piece, size);
}

void release_cache_memory() {
  const std::lock_guard<std::mutex> lock(held_mutex);
  std::free(std::exchange(held, {}).memory);
}

}  // namespace spcl

#endif
