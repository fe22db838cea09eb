// Stands in the place of CUDA's header of this name.
#include "cuda_on_host.h"
