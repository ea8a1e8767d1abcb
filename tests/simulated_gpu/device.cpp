// A CUDA device in main memory, for tests on machines without a GPU.
//
// Tensors of device type cuda have storages here that only differ from the CPU's in their device. Every operator without a
// kernel of its own goes to `run_on_host`: it redresses the arguments as CPU tensors over the same memory, calls the
// operator, and redresses the results. As on a GPU, an operator that gets tensors of both devices raises. Copies between the
// devices, waits of the host and bytes are counted; allocations can be made to fail, and the device can be lost. Operators
// run at once on every stream; what a copy wrote on a stream of its own cannot be used on the default stream before that
// waits for an event.
//
// The library is loaded with LD_PRELOAD, because it replaces functions of at::accelerator in torch's CPU build.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <limits>
#include <map>
#include <mutex>

namespace {

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::IValue, c10::Stream;
using at::Tensor;

const Device kDevice(DeviceType::CUDA, 0);
const Device kHost(DeviceType::CPU);
const Stream kStream(Stream::DEFAULT, kDevice);
constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// ---- The ledger: what is counted, and what is to fail ----

struct Ledger {
  std::atomic<int64_t> used{0}, peak{0}, to_device{0}, pageable{0}, to_host{0}, waits{0}, operations{0}, host_bytes{0};
  std::atomic<int64_t> capacity{kUnlimited};
  std::atomic<int64_t> until_failure{-1};  // allocations up to the one that fails, counted down; negative: none fails
  std::atomic<bool> lost{false};

  void check() const {
    if (lost) throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 700, "CUDA error: an illegal memory access was encountered [simulated]");
  }

  void take(int64_t bytes) {
    check();
    bool fails = bytes > 0 && until_failure >= 0 && until_failure-- == 0;
    int64_t now = used += bytes;
    if (fails || now > capacity) {
      used -= bytes;
      throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, c10::str("CUDA out of memory. Tried to allocate ", bytes, " bytes [simulated]"));
    }
    for (int64_t before = peak; now > before && !peak.compare_exchange_weak(before, now);) {}
  }
} ledger;

// ---- Streams: the default one, and any number of others ----

thread_local Stream current_stream = kStream;
std::atomic<int64_t> streams{0};

using Range = std::pair<const char*, const char*>;

Range range_of(const Tensor& t) {
  const char* begin = static_cast<const char*>(t.const_data_ptr());
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); i++) last += (t.size(i) - 1) * t.stride(i);
  return {begin, begin + (last + 1) * static_cast<int64_t>(t.itemsize())};
}

struct WrittenBeside {
  std::atomic<int64_t> count{0};
  std::vector<Range> ranges;
  std::mutex mutex;

  void add(const Tensor& t) {
    std::lock_guard guard(mutex);
    ranges.push_back(range_of(t));
    count = ranges.size();
  }
  void clear() {
    std::lock_guard guard(mutex);
    ranges.clear();
    count = 0;
  }
  void forget(const void* block, int64_t bytes) {  // freed memory
    if (!count) return;
    const char* begin = static_cast<const char*>(block);
    std::lock_guard guard(mutex);
    std::erase_if(ranges, [&](const Range& range) { return begin <= range.first && range.first < begin + bytes; });
    count = ranges.size();
  }
  void check(const Tensor& t) {
    if (!count || current_stream != kStream || !t.numel()) return;
    const auto [begin, end] = range_of(t);
    std::lock_guard guard(mutex);
    for (const auto& [from, to] : ranges) TORCH_CHECK(end <= from || to <= begin, "used before the stream waited for the copy that wrote it [simulated]");
  }
} written_beside;

// ---- Memory ----

struct PinnedMemory final : c10::Allocator {
  std::map<const void*, size_t> blocks;
  std::mutex mutex;

  c10::DataPtr allocate(size_t bytes) override;
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }

  bool holds(const void* pointer) {
    std::lock_guard guard(mutex);
    auto next = blocks.upper_bound(pointer);
    if (next == blocks.begin()) return false;
    const auto& [begin, bytes] = *--next;
    return static_cast<const char*>(pointer) < static_cast<const char*>(begin) + bytes;
  }
  void release(void* block) {
    std::lock_guard guard(mutex);
    blocks.erase(block);
    free(block);
  }
} pinned;

c10::DataPtr PinnedMemory::allocate(size_t bytes) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, bytes ? bytes : 64)) throw std::bad_alloc();
  std::lock_guard guard(mutex);
  blocks[block] = bytes;
  return {block, block, [](void* context) { pinned.release(context); }, kHost};
}

struct Block { void* memory; int64_t bytes; };

struct DeviceMemory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    ledger.take(bytes);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes ? bytes : 64)) throw std::bad_alloc();
    return {memory, new Block{memory, static_cast<int64_t>(bytes)}, &release, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }

  static void release(void* context) {
    std::unique_ptr<Block> block(static_cast<Block*>(context));
    ledger.used -= block->bytes;
    written_beside.forget(block->memory, block->bytes);
    free(block->memory);
  }
} memory;

// ---- Redressing: the same memory as a tensor of the other device ----

struct Borrowed { Tensor owner; int64_t bytes; };

void give_back(void* context) {
  std::unique_ptr<Borrowed> borrowed(static_cast<Borrowed*>(context));
  ledger.used -= borrowed->bytes;
  if (borrowed->bytes) written_beside.forget(borrowed->owner.storage().data(), borrowed->bytes);
}

Tensor redress(const Tensor& t, Device device) {
  c10::Storage storage = t.storage();
  const int64_t charged = device.is_cuda() ? static_cast<int64_t>(storage.nbytes()) : 0;
  ledger.take(charged);
  c10::DataPtr data(const_cast<void*>(storage.data()), new Borrowed{t, charged}, &give_back, device);
  c10::Storage dressed(c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), nullptr, false);
  auto key = device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU;
  Tensor out = at::detail::make_tensor<c10::TensorImpl>(std::move(dressed), c10::DispatchKeySet(key), t.dtype());
  out.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
  out._set_conj(t.is_conj());
  out._set_neg(t.is_neg());
  return out;
}

void adopt_layout(const Tensor& to, const Tensor& from) {
  to.unsafeGetTensorImpl()->set_storage_offset(from.storage_offset());
  to.unsafeGetTensorImpl()->set_sizes_and_strides(from.sizes(), from.strides());
}

// ---- The kernel of all operators without one of their own ----

struct Written { Tensor given, on_host; bool is_new; };

bool takes_host_indices(const std::string& name) {
  return name == "aten::index" || name == "aten::_unsafe_index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
}

class HostCall {
 public:
  HostCall(const c10::OperatorHandle& op, torch::jit::Stack* stack)
      : op_(op), schema_(op.schema()), stack_(stack), given_(stack->end() - schema_.arguments().size(), stack->end()) {}

  void run() {
    ledger.check();
    ledger.operations++;
    for (size_t i = 0; i < given_.size(); i++) argument(i) = to_host(given_[i], schema_.arguments()[i].alias_info());
    if (has_device_tensor_ && !foreign_.empty() && !takes_host_indices(schema_.name()))
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu (", foreign_, ") in ", schema_.name(), " [simulated]");
    op_.callBoxed(stack_);
    for (const Written& written : written_) write_back(written);
    const size_t count = schema_.returns().size();
    for (size_t i = 0; i < count; i++) {
      IValue& value = (*stack_)[stack_->size() - count + i];
      value = to_device(value, schema_.returns()[i].alias_info());
    }
  }

 private:
  IValue& argument(size_t i) { return (*stack_)[stack_->size() - given_.size() + i]; }

  Tensor tensor_to_host(const Tensor& t, bool in_list) {
    if (!t.defined()) return t;
    if (t.is_cuda()) {
      has_device_tensor_ = true;
      written_beside.check(t);
      return redress(t, kHost);
    }
    if (t.dim() > 0 && !in_list) foreign_ = c10::str(t.toString(), t.sizes());  // numbers of no dimension may be anywhere
    if (t.dim() > 0 && in_list) foreign_ = c10::str(t.toString(), t.sizes());
    return t;
  }

  IValue to_host(const IValue& value, const c10::AliasInfo* alias) {
    if (value.isTensor()) return written_to_host(value.toTensor(), alias && alias->isWrite());
    if (value.isTensorList()) {
      c10::List<Tensor> out;
      for (const Tensor& t : value.toTensorList()) out.push_back(tensor_to_host(t, true));
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> out;
      for (const std::optional<Tensor> t : value.toOptionalTensorList()) out.push_back(t ? std::optional(tensor_to_host(*t, true)) : t);
      return out;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) return kHost;
    return value;
  }

  Tensor written_to_host(const Tensor& t, bool is_written) {
    if (!is_written || !t.defined() || !t.is_cuda()) return tensor_to_host(t, false);
    has_device_tensor_ = true;
    const bool is_new = t.numel() == 0;  // an `out` that the operator will resize
    Tensor on_host = is_new ? at::empty({0}, t.options().device(kHost)) : redress(t, kHost);
    written_.push_back({t, on_host, is_new});
    return on_host;
  }

  static void write_back(const Written& written) {
    if (written.is_new) {
      if (!written.on_host.numel()) return;
      Tensor dressed = redress(written.on_host, kDevice);
      written.given.unsafeGetTensorImpl()->set_storage_keep_dtype(dressed.storage());
      adopt_layout(written.given, dressed);
    } else if (!written.on_host.sizes().equals(written.given.sizes())) {  // an operator that transposes in place
      adopt_layout(written.given, written.on_host);
    }
  }

  IValue to_device(const IValue& value, const c10::AliasInfo* alias) {
    if (alias && alias->isWrite()) return argument_behind(alias);
    if (value.isTensor()) return result_to_device(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> out;
    for (const Tensor& t : value.toTensorList()) out.push_back(result_to_device(t));
    return out;
  }

  IValue argument_behind(const c10::AliasInfo* alias) const {
    for (size_t i = 0; i < given_.size(); i++) {
      const auto* other = schema_.arguments()[i].alias_info();
      if (other && other->isWrite() && other->beforeSets() == alias->beforeSets()) return given_[i];
    }
    TORCH_CHECK(false, "no argument is behind a result of ", schema_.name(), " [simulated]");
  }

  Tensor result_to_device(const Tensor& t) const {
    if (!t.defined() || !t.is_cpu()) return t;
    for (const IValue& value : given_) {  // a view shares its argument's storage
      if (!value.isTensor() || !value.toTensor().defined() || !value.toTensor().is_cuda() || !t.numel()) continue;
      const Tensor& base = value.toTensor();
      if (base.storage().data() == t.storage().data())
        return at::native::as_strided_tensorimpl(base, t.sizes(), t.strides(), t.storage_offset());
    }
    return redress(t, kDevice);
  }

  const c10::OperatorHandle& op_;
  const c10::FunctionSchema& schema_;
  torch::jit::Stack* stack_;
  std::vector<IValue> given_;
  std::vector<Written> written_;
  std::string foreign_;
  bool has_device_tensor_ = false;
};

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) { HostCall(op, stack).run(); }

// ---- Kernels of their own: allocation, copies, views ----

using Sizes = c10::SymIntArrayRef;
template <typename T> using Maybe = std::optional<T>;

Tensor empty(Sizes size, Maybe<at::ScalarType> dtype, Maybe<at::Layout>, Maybe<Device>, Maybe<bool>, Maybe<at::MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(Sizes size, Sizes stride, Maybe<at::ScalarType> dtype, Maybe<at::Layout>, Maybe<Device>, Maybe<bool>) {
  return at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory, c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(dtype));
}

Tensor& copy(Tensor& self, const Tensor& source, bool non_blocking) {
  ledger.check();
  if (self.is_cuda() && source.is_cpu()) {
    ledger.to_device++;
    if (!pinned.holds(source.const_data_ptr())) ledger.pageable++;
  }
  if (source.is_cuda()) written_beside.check(source);
  if (self.is_cpu() && source.is_cuda()) {
    ledger.to_host++;
    ledger.host_bytes += static_cast<int64_t>(self.nbytes());
    if (!non_blocking) ledger.waits++;
  }
  Tensor to = self.is_cuda() ? redress(self, kHost) : self;
  to.copy_(source.is_cuda() ? redress(source, kHost) : source);
  if (self.is_cuda() && self.numel() && current_stream != kStream) written_beside.add(self);
  return self;
}

at::Scalar number(const Tensor& t) {
  ledger.check();
  written_beside.check(t);
  ledger.to_host++;
  ledger.waits++;
  return redress(t, kHost).item();
}

Tensor view(const Tensor& t, Sizes size) { return at::native::view(t, C10_AS_INTARRAYREF_SLOW(size)); }
Tensor reshape_alias(const Tensor& t, Sizes size, Sizes stride) {
  return at::native::_reshape_alias(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}
Tensor as_strided(const Tensor& t, Sizes size, Sizes stride, Maybe<c10::SymInt> offset) {
  return at::native::as_strided_tensorimpl(t, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), offset ? Maybe<int64_t>(offset->expect_int()) : std::nullopt);
}
Tensor unfold(const Tensor& t, int64_t dim, int64_t size, int64_t step) { return at::native::unfold(t, dim, size, step); }
Tensor as_real(const Tensor& t) { return at::native::view_as_real(t); }
Tensor as_complex(const Tensor& t) { return at::native::view_as_complex(t); }
void record_stream(Tensor&, Stream) {}

// As on a GPU, attention without a mask is one kernel, which keeps no matrix of the rows' products.
Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value, const Maybe<Tensor>& mask, double dropout, bool is_causal, Maybe<double> scale, bool grouped) {
  const bool is_fused = !(mask && mask->defined()) && !grouped && dropout == 0 && query.dim() == 4 && query.size(1) == key.size(1);
  if (is_fused) return std::get<0>(at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout, is_causal, {}, scale));
  Maybe<Tensor> added = mask;  // a mask of booleans is true where there is attention
  if (mask && mask->defined() && mask->scalar_type() == at::kBool)
    added = at::zeros_like(*mask, query.options()).masked_fill_(mask->logical_not(), -std::numeric_limits<double>::infinity());
  return std::get<0>(at::_scaled_dot_product_attention_math(query, key, value, added, dropout, is_causal, {}, scale, grouped));
}

Tensor& set_part(Tensor& self, c10::Storage source, c10::SymInt offset, Sizes size, Sizes stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset.expect_int());
  self.unsafeGetTensorImpl()->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}
Tensor& set_whole(Tensor& self, c10::Storage source) {
  const c10::SymInt numbers(static_cast<int64_t>(source.nbytes() / self.itemsize())), one(1);
  return set_part(self, std::move(source), 0, {numbers}, {one});
}

// ---- The device as torch sees it ----

struct Guard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  Device exchangeDevice(Device) const override { return kDevice; }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device) const override { return current_stream; }
  Stream getDefaultStream(Device) const override { return kStream; }
  Stream getNewStream(Device, int) const override { return Stream(Stream::UNSAFE, kDevice, ++streams); }
  Stream exchangeStream(Stream stream) const override { return std::exchange(current_stream, stream); }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream& stream) const override {
    if (stream == kStream) written_beside.clear();
  }
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
};

const bool has_allocator = [] { c10::SetAllocator(DeviceType::CUDA, &memory); return true; }();

// ---- What tests read and set ----

int64_t count_of(const std::string& name) {
  if (name == "used") return ledger.used;
  if (name == "peak") return ledger.peak;
  if (name == "to_device") return ledger.to_device;
  if (name == "pageable") return ledger.pageable;
  if (name == "to_host") return ledger.to_host;
  if (name == "host_bytes") return ledger.host_bytes;
  if (name == "waits") return ledger.waits;
  if (name == "operations") return ledger.operations;
  TORCH_CHECK(false, "no such count: ", name);
}

void reset_counts() {
  ledger.peak = ledger.used.load();
  ledger.to_device = ledger.pageable = ledger.to_host = ledger.host_bytes = ledger.waits = ledger.operations = 0;
}

void reset_peak() { ledger.peak = ledger.used.load(); }

void set_faults(int64_t capacity, int64_t until_failure, bool lost) {
  ledger.capacity = capacity < 0 ? kUnlimited : capacity;
  ledger.until_failure = until_failure;
  ledger.lost = lost;
}

void wait_for_device() { ledger.check(); }

}  // namespace

namespace at {
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex current_device() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  bool isPinnedPtr(const void* pointer) const override { return pinned.holds(pointer); }
  Allocator* getPinnedMemoryAllocator() const override { return &pinned; }
  void deviceSynchronize(DeviceIndex) const override { ledger.check(); }
};
using at::CUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

namespace at::accelerator {
#define REPLACES __attribute__((visibility("default")))
REPLACES std::optional<DeviceType> getAccelerator(bool) { return DeviceType::CUDA; }
REPLACES Stream getCurrentStream(DeviceIndex) { return current_stream; }
REPLACES void setCurrentStream(Stream stream) { current_stream = stream; }
REPLACES DeviceIndex getDeviceIndex() { return 0; }
REPLACES void setDeviceIndex(DeviceIndex) {}
REPLACES DeviceIndex maybeExchangeDevice(DeviceIndex) { return 0; }
}  // namespace at::accelerator

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy);
  m.impl("_local_scalar_dense", number);
  m.impl("view", view);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("as_strided", as_strided);
  m.impl("unfold", unfold);
  m.impl("view_as_real", as_real);
  m.impl("view_as_complex", as_complex);
  m.impl("record_stream", record_stream);
  m.impl("scaled_dot_product_attention", attention);
  m.impl("set_.source_Storage", set_whole);
  m.impl("set_.source_Storage_storage_offset", set_part);
  // A CPU decomposes these; CUDA has kernels for them.
  for (auto name : {"native_layer_norm", "native_layer_norm_backward", "native_group_norm", "native_group_norm_backward", "mse_loss", "mse_loss_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, AutogradCUDA, m) { m.impl("scaled_dot_product_attention", attention); }

TORCH_LIBRARY(simulated_gpu, m) {
  m.def("count(str name) -> int", &count_of);
  m.def("reset_counts() -> ()", &reset_counts);
  m.def("reset_peak() -> ()", &reset_peak);
  m.def("inject(int capacity, int until_failure, bool lost) -> ()", &set_faults);
  m.def("synchronize() -> ()", &wait_for_device);
}
