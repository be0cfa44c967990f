// What both libraries say of themselves, as plain C functions that ranvier/kernels.py reads through ctypes.
#pragma once

#if defined(_WIN32)
#define RANVIER_EXPORT extern "C" __declspec(dllexport)
#else
#define RANVIER_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__clang__)
#define RANVIER_COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
#define RANVIER_COMPILER "GCC " __VERSION__
#elif defined(_MSC_VER)
#define RANVIER_COMPILER "MSVC"
#else
#define RANVIER_COMPILER "unknown compiler"
#endif

// The signatures of the handlers: a change of attributes, buffers or their meaning makes it the next number, here and
// in ranvier/kernels.py, which refuses a library of another number.
RANVIER_EXPORT int ranvier_interface() { return 3; }

// XLA FFI API 0.3 is the one of JAX 0.10, the oldest JAX supported; handlers built for it load in later ones. The
// loader compares it with the running jaxlib before it registers a handler: XLA refuses one that is newer than itself
// only after registration, and then the whole backend fails to start.
RANVIER_EXPORT int ranvier_ffi_api_major() { return 0; }
RANVIER_EXPORT int ranvier_ffi_api_minor() { return 3; }
