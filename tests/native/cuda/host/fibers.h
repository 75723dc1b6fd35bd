// The simulator of kernels runs a thread of a block as a context of <ucontext.h>, with a stack from
// new[]. Here a switch makes no call of the system, and stacks and ThreadSanitizer's states are used
// again by the next block: a tenth of the time under AddressSanitizer. Included ahead of it.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

// Stores what a called function must keep, and the stack pointer; returns on the other stack.
extern "C" void spcl_switch_stack(void** from, void* to);
asm(R"(
.text
.weak spcl_switch_stack
.hidden spcl_switch_stack
.type spcl_switch_stack, @function
spcl_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size spcl_switch_stack, . - spcl_switch_stack
)");

#define SPCL_PLAIN __attribute__((no_sanitize("address", "thread", "undefined")))

namespace fibers {

inline int get(ucontext_t*) { return 0; }

SPCL_PLAIN inline void make(ucontext_t* context, void (*entry)()) {
  const auto base = reinterpret_cast<uintptr_t>(context->uc_stack.ss_sp);
  void** top = reinterpret_cast<void**>((base + context->uc_stack.ss_size) & ~uintptr_t{15});
  *--top = nullptr;  // the function is entered as by a call, 8 bytes off a multiple of 16
  *--top = reinterpret_cast<void*>(entry);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  context->uc_mcontext.gregs[REG_RSP] = reinterpret_cast<greg_t>(top);
}

SPCL_PLAIN inline int swap(ucontext_t* from, const ucontext_t* to) {
  spcl_switch_stack(reinterpret_cast<void**>(&from->uc_mcontext.gregs[REG_RSP]),
                    reinterpret_cast<void*>(to->uc_mcontext.gregs[REG_RSP]));
  return 0;
}

}  // namespace fibers

#define getcontext(context) fibers::get(context)
#define makecontext(context, entry, count) fibers::make(context, entry)
#define swapcontext(from, to) fibers::swap(from, to)

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#if defined(__SANITIZE_ADDRESS__)
extern "C" void __asan_unpoison_memory_region(const volatile void*, size_t);
#endif

namespace fibers {

constexpr size_t kStack = 256 * 1024, kMost = 1024;  // the simulator's bytes, threads of a block
inline char* stacks = nullptr;
inline std::vector<void*> spare;

inline void* take_stack() {
  if (stacks == nullptr) {
    stacks = static_cast<char*>(std::malloc(kStack * kMost));
    for (size_t k = 0; k < kMost; ++k) spare.push_back(stacks + k * kStack);
  }
  void* stack = spare.back();
  spare.pop_back();
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStack);  // of frames that were left for good
#endif
  return stack;
}

inline bool is_stack(const void* p) {
  return stacks != nullptr && p >= stacks && p < stacks + kStack * kMost;
}

}  // namespace fibers

void* operator new[](size_t size) {
  if (size == fibers::kStack) return fibers::take_stack();
  if (void* p = std::malloc(size)) return p;
  throw std::bad_alloc();
}
void operator delete[](void* p) noexcept {
  if (fibers::is_stack(p)) {
    fibers::spare.push_back(p);
  } else {
    std::free(p);
  }
}
void operator delete[](void* p, size_t) noexcept { operator delete[](p); }
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" void* __tsan_create_fiber(unsigned);

inline std::vector<void*> spcl_spare_states;

extern "C" inline void* spcl_take_state(unsigned flags) {
  if (spcl_spare_states.empty()) return __tsan_create_fiber(flags);
  void* state = spcl_spare_states.back();
  spcl_spare_states.pop_back();
  return state;
}
extern "C" inline void spcl_put_state(void* state) { spcl_spare_states.push_back(state); }

#define __tsan_create_fiber spcl_take_state
#define __tsan_destroy_fiber spcl_put_state
#endif
#endif
