// Large zeroed memory in huge pages where the system gives them.
#pragma once

#include <cstddef>

namespace headstock {

// Returns zeroed memory, aligned to 2 MiB when it is that large, to 64 bytes at least; null when
// there is none. Touched lazily: it costs nothing until it is written.
void* allocate_pages(size_t bytes);

// Gives back what allocate_pages returned for the same size.
void free_pages(void* memory, size_t bytes);

}  // namespace headstock
