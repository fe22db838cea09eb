// Memory with a wall behind it, or before it: to be preloaded (LD_PRELOAD) into a process that runs the ops.
//
// Every allocation gets pages of its own, next to pages that nobody may touch, so that the first read or write beyond its end
// (or, in the other mode, before its start) stops the process, whoever does it: gathers and scatters too, which compilers'
// sanitizers do not watch. What was freed is closed for ever, and never handed out again.
//
// guard_mode(0): memory comes from the C library, as ever; 1: walls behind; 2: walls before. It is 0 at the start.
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

extern "C" {

void* __libc_malloc(size_t);
void __libc_free(void*);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static const size_t kPage = 4096, kPages = size_t(1) << 24;  // 64 GiB of addresses, no memory
static std::atomic<int> mode{0};
static std::atomic<size_t> next_page{0};
static char* arena = nullptr;
static size_t* sizes = nullptr;  // by first page

static bool ours(const void* p) { return arena != nullptr && p >= arena && p < arena + kPages * kPage; }
static size_t page_of(const void* p) { return static_cast<size_t>(static_cast<const char*>(p) - arena) / kPage; }

static void stop(const char* why) {
  (void)!::write(2, why, strlen(why));
  abort();
}

// Memory of the C library is promised to lie at multiples of 16, and compilers count on it; the bytes that this leaves between an
// end and its wall are looked at when it is freed.
constexpr unsigned char kSeal = 0xc3;

static void* guarded(size_t align, size_t size) {
  const size_t pages = (size + kPage - 1) / kPage + (size == 0 ? 1 : 0) + (align > kPage ? align / kPage : 0);
  const size_t first = next_page.fetch_add(pages + 2) + 1;  // a wall on both sides
  if (first + pages >= kPages) stop("guard_malloc: no addresses are left\n");
  char* const begin = arena + first * kPage;
  if (mprotect(begin, pages * kPage, PROT_READ | PROT_WRITE) != 0) stop("guard_malloc: mprotect failed\n");
  char* p = begin;
  if (mode == 1) p = begin + pages * kPage - size;
  p -= reinterpret_cast<uintptr_t>(p) % align;
  if (p < begin) p += align;
  memset(begin, kSeal, static_cast<size_t>(p - begin));
  memset(p, 0xa5, size);
  memset(p + size, kSeal, static_cast<size_t>(begin + pages * kPage - (p + size)));
  sizes[page_of(p)] = size;
  return p;
}

static void close_up(void* memory) {
  char* const p = static_cast<char*>(memory);
  const size_t page = page_of(p), size = sizes[page];
  char* const begin = arena + page * kPage;
  char* const end = begin + ((p - begin) + size + kPage - 1) / kPage * kPage;
  for (const char* c = begin; c < p; ++c)
    if (static_cast<unsigned char>(*c) != kSeal) stop("guard_malloc: something was written before the start of a block\n");
  for (const char* c = p + size; c < end; ++c)
    if (static_cast<unsigned char>(*c) != kSeal) stop("guard_malloc: something was written beyond the end of a block\n");
  madvise(begin, static_cast<size_t>(end - begin), MADV_DONTNEED);
  mprotect(begin, static_cast<size_t>(end - begin), PROT_NONE);
}

int guard_mode(int wanted) {
  if (arena == nullptr) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    sizes = static_cast<size_t*>(mmap(nullptr, kPages * sizeof(size_t), PROT_READ | PROT_WRITE, flags, -1, 0));
    void* const all = mmap(nullptr, kPages * kPage, PROT_NONE, flags, -1, 0);
    if (sizes == MAP_FAILED || all == MAP_FAILED) return -1;
    arena = static_cast<char*>(all);
  }
  return mode.exchange(wanted);
}

void* malloc(size_t size) { return mode != 0 ? guarded(16, size) : __libc_malloc(size); }

void free(void* p) {
  const int before = errno;
  if (ours(p))
    close_up(p);
  else
    __libc_free(p);
  errno = before;
}

void* calloc(size_t n, size_t each) {
  size_t size;
  if (mode == 0 || __builtin_mul_overflow(n, each, &size)) return __libc_calloc(n, each);
  return memset(guarded(16, size), 0, size);
}

void* realloc(void* p, size_t size) {
  if (mode == 0 && !ours(p)) return __libc_realloc(p, size);
  if (p == nullptr) return malloc(size);
  if (!ours(p)) return __libc_realloc(p, size);
  void* const out = malloc(size);
  memcpy(out, p, sizes[page_of(p)] < size ? sizes[page_of(p)] : size);
  free(p);
  return out;
}

// Tensors come by this one. They are promised more than their elements need; here they end at the wall to the byte.
int posix_memalign(void** out, size_t align, size_t size) {
  const bool exact = mode != 0 && align == 64;
  *out = exact ? guarded(1, size) : mode != 0 ? guarded(align, size) : __libc_memalign(align, size);
  return *out == nullptr ? ENOMEM : 0;
}
void* aligned_alloc(size_t align, size_t size) { return mode != 0 ? guarded(align, size) : __libc_memalign(align, size); }
void* memalign(size_t align, size_t size) { return aligned_alloc(align, size); }

}  // extern "C"
