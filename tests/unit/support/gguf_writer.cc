#include "tests/unit/support/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>

namespace whit {
namespace {

constexpr uint32_t kArrayType = 9;

class Output {
 public:
  template <typename T>
  void Put(T value) {
    Append(&value, sizeof(value));
  }
  void Put(const std::string& value) {
    Put(uint64_t{value.size()});
    Append(value.data(), value.size());
  }
  void Put(std::monostate) {}
  void Put(const GgufWriter::Array& array) {
    Put(static_cast<uint32_t>(array.index()));
    std::visit(
        [this](const auto& elements) {
          if constexpr (!std::is_same_v<std::decay_t<decltype(elements)>, std::monostate>) {
            Put(uint64_t{elements.size()});
            for (const auto& element : elements) Put(element);
          }
        },
        array);
  }
  void Append(const void* data, size_t size) {
    const size_t end = bytes.size();
    bytes.resize(end + size);
    if (size > 0) std::memcpy(bytes.data() + end, data, size);
  }
  void Pad(uint64_t alignment) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  }

  std::vector<std::byte> bytes;
};

template <typename List>
auto FindKey(List& metadata, std::string_view key) {
  return std::find_if(metadata.begin(), metadata.end(),
                      [key](const auto& entry) { return entry.first == key; });
}

}  // namespace

void GgufWriter::Set(std::string_view key, Value value) {
  static_assert(std::is_same_v<std::variant_alternative_t<kArrayType, Value>, Array>);
  if (const auto it = FindKey(metadata, key); it != metadata.end()) {
    it->second = std::move(value);
  } else {
    metadata.emplace_back(key, std::move(value));
  }
}

void GgufWriter::Remove(std::string_view key) {
  if (const auto it = FindKey(metadata, key); it != metadata.end()) metadata.erase(it);
}

GgufWriter::Tensor& GgufWriter::FindTensor(std::string_view name) {
  for (Tensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  throw std::out_of_range(std::string(name));
}

void GgufWriter::RemoveTensor(std::string_view name) {
  tensors.erase(tensors.begin() + (&FindTensor(name) - tensors.data()));
}

std::vector<std::byte> GgufWriter::Build() const {
  Output out;
  out.Put(uint32_t{0x46554747});  // "GGUF"
  out.Put(version);
  out.Put(uint64_t{tensors.size()});
  out.Put(uint64_t{metadata.size()});
  for (const auto& [key, value] : metadata) {
    out.Put(key);
    out.Put(static_cast<uint32_t>(value.index()));
    std::visit([&out](const auto& v) { out.Put(v); }, value);
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors) {
    out.Put(tensor.name);
    out.Put(static_cast<uint32_t>(tensor.dimensions.size()));
    for (uint64_t size : tensor.dimensions) out.Put(size);
    out.Put(static_cast<uint32_t>(tensor.type));
    out.Put(offset);
    offset = (offset + tensor.data.size() + alignment - 1) / alignment * alignment;
  }
  for (const Tensor& tensor : tensors) {
    out.Pad(alignment);
    out.Append(tensor.data.data(), tensor.data.size());
  }
  return std::move(out.bytes);
}

}  // namespace whit
