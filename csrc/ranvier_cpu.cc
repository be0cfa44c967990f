// The compiled library for the CPU: what it was built for and with.
//
// Plain C functions, read by ranvier/kernels.py through ctypes; strings are static and never freed.
// Operators will be XLA FFI handlers beside these functions. The loader compares the FFI version below with
// the running jaxlib before it registers one: XLA refuses a handler that is newer than itself only after
// registration, and then the whole CPU backend fails to start.

#if defined(_WIN32)
#define RANVIER_EXPORT extern "C" __declspec(dllexport)
#else
#define RANVIER_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

// XLA FFI API 0.3 is the one of JAX 0.10, the oldest JAX supported; handlers built for it load in later ones.
constexpr int kFfiApiMajor = 0;
constexpr int kFfiApiMinor = 3;

#if defined(__AVX512F__)
constexpr char kIsa[] = "x86-64-v4";
#elif defined(__AVX2__)
constexpr char kIsa[] = "x86-64-v3";
#elif defined(__x86_64__) || defined(_M_X64)
constexpr char kIsa[] = "x86-64";
#elif defined(__aarch64__) || defined(_M_ARM64)
constexpr char kIsa[] = "aarch64";
#else
constexpr char kIsa[] = "other";
#endif

#if defined(__clang__)
constexpr char kCompiler[] = "Clang " __clang_version__;
#elif defined(__GNUC__)
constexpr char kCompiler[] = "GCC " __VERSION__;
#elif defined(_MSC_VER)
constexpr char kCompiler[] = "MSVC";
#else
constexpr char kCompiler[] = "unknown compiler";
#endif

}  // namespace

RANVIER_EXPORT int ranvier_ffi_api_major() { return kFfiApiMajor; }
RANVIER_EXPORT int ranvier_ffi_api_minor() { return kFfiApiMinor; }

// The instruction set that the code may use.
RANVIER_EXPORT const char* ranvier_isa() { return kIsa; }

RANVIER_EXPORT const char* ranvier_compiler() { return kCompiler; }
