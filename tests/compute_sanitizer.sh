#!/usr/bin/env bash
# The kernels for GPUs under CUDA's compute-sanitizer: accesses outside of memory, races in shared memory. Needs a GPU, the
# CUDA toolkit and JAX for CUDA.
#   RANVIER_LIB_DIR=build/gpu bash tests/compute_sanitizer.sh [WORD ...]
# synccheck is not among the tools: it wants all threads of a block at one place of the code, but warps with different work
# meet at a barrier from different places.
# The words choose cases of tests/kernel_paths.py. TOOLS="memcheck initcheck" chooses the tools, PYTHON the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")

# A missing library or a CPU in place of the GPU must not pass. Each array has memory of its own, so that what lies beyond
# its end belongs to nobody.
export RANVIER_REQUIRE_NATIVE=1 JAX_PLATFORMS=cuda XLA_PYTHON_CLIENT_ALLOCATOR=platform XLA_PYTHON_CLIENT_PREALLOCATE=false
status=0
for tool in ${TOOLS:-memcheck racecheck}; do
  ours=(--kernel-name kns=ranvier)
  # What is read may have been written by a kernel of XLA, so that this tool has to watch those too.
  [ "$tool" = initcheck ] && ours=()
  echo "== $tool"
  # XLA asks the driver for things that it knows may fail; those are no errors of ours.
  "$sanitizer" --tool "$tool" "${ours[@]}" --report-api-errors no --error-exitcode 9 \
    "${PYTHON:-python3}" -m tests.kernel_paths "$@" || status=1
done
exit "$status"
