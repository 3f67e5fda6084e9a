#include "checkpoint/torch_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <optional>
#include <unordered_map>
#include <unordered_set>

#include "base/check.h"
#include "base/crc32.h"
#include "base/text.h"
#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/zip_directory.h"

namespace weft {
namespace {

constexpr const char* kFetchAgain = "the file is damaged or incompletely downloaded; fetch it again";
constexpr const char* kHostile = "this is beyond any real model; the file is damaged or hostile";
constexpr std::uint64_t kMaxPickleBytes = 2'000'000'000;
constexpr int kMaxDepth = 1000;
constexpr std::uint64_t kMaxVisits = 4'000'000;
/// An expanded view (stride 0) may claim any size; a real one is a small mask or a repeated bias.
constexpr std::uint64_t kMaxExpandedBytes = std::uint64_t{1} << 30;

struct NamedType {
  std::string_view name;
  DType dtype;
};
constexpr NamedType kStorageTypes[] = {
    {"FloatStorage", DType::f32}, {"DoubleStorage", DType::f64},   {"HalfStorage", DType::f16},         {"BFloat16Storage", DType::bf16},
    {"LongStorage", DType::i64},  {"IntStorage", DType::i32},      {"ShortStorage", DType::i16},        {"CharStorage", DType::i8},
    {"ByteStorage", DType::u8},   {"BoolStorage", DType::boolean}, {"ComplexFloatStorage", DType::c64},
};

std::uint64_t element_bytes(DType dtype) { return static_cast<std::uint64_t>(info(dtype).bits) / 8; }

/// What a persistent id says.
struct StorageId {
  std::string key;
  std::optional<DType> dtype;  ///< nothing: untyped, numel counts bytes
  std::uint64_t numel = 0;
  std::uint64_t first = 0;  ///< of a legacy view, in elements of its root
};

/// Why a value that is a tensor cannot be one here.
struct Unrepresentable {
  std::string kind;
};

class Reader {
 public:
  Reader(const ByteSource& source, const OpenOptions& options) : source_(source), options_(options) {}

  TorchContents read() {
    std::array<std::byte, 4> first{};
    if (source_.size_bytes >= first.size()) source_.read(0, first);
    if (std::memcmp(first.data(), "PK\3\4", 4) == 0)
      read_zip();
    else
      read_legacy();
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(std::string message, std::string tensor = {}, const char* advice = kFetchAgain) const {
    throw Error(ErrorCode::corrupt, std::move(message), {.file = source_.path.string(), .tensor = printable(tensor)}, advice);
  }
  [[noreturn]] void refuse(std::string message, std::string advice, std::string tensor = {}) const {
    throw Error(ErrorCode::unsupported, std::move(message), {.file = source_.path.string(), .tensor = printable(tensor)}, std::move(advice));
  }

  // ---- Containers ----

  void read_zip() {
    const ZipDirectory zip(source_);
    const ZipEntry* data = nullptr;
    for (const ZipEntry& entry : zip.entries()) {
      if (!entry.name.ends_with("/data.pkl") || std::count(entry.name.begin(), entry.name.end(), '/') != 1) continue;
      if (data) fail(fmt::format("the archive holds two checkpoints, '{}' and '{}'", printable(data->name), printable(entry.name)));
      data = &entry;
    }
    if (!data)
      refuse("the file is a zip archive that holds no PyTorch checkpoint (no data.pkl)",
             "unpack it if it holds a model; NumPy's arrays are read from files named .npz");
    top_ = data->name.substr(0, data->name.size() - std::string_view("data.pkl").size());
    for (const ZipEntry& entry : zip.entries())
      if (entry.name.starts_with(top_ + "code/") || entry.name == top_ + "constants.pkl")
        refuse(fmt::format("the file is a TorchScript program ('{}'), not a checkpoint", printable(entry.name)),
               "save its weights with torch.save(torch.jit.load(FILE).state_dict(), OUT)");
    if (const ZipEntry* order = zip.find(top_ + "byteorder")) {
      const std::string text = zip.read_small(source_, *order, 64);
      if (text != "little" && text != "big") fail(fmt::format("the byte order is '{}', neither little nor big", printable(text)));
      out_.big_endian = text == "big";
    }
    zip.require_stored(*data);
    if (data->size_bytes > kMaxPickleBytes) refuse(fmt::format("its pickle has {} bytes", data->size_bytes), kHostile);
    check_crc(*data);
    zip_ = &zip;
    pickle_.emplace(source_, data->offset_bytes, data->offset_bytes + data->size_bytes);
    find_model();
    zip_ = nullptr;
  }

  /// Names come from here, so damage must not pass.
  void check_crc(const ZipEntry& entry) const {
    std::vector<std::byte> buffer;
    std::uint32_t sum = 0;
    for (std::uint64_t at = 0; at < entry.size_bytes; at += buffer.size()) {
      buffer.resize(static_cast<std::size_t>(std::min<std::uint64_t>(entry.size_bytes - at, 1 << 16)));
      source_.read(entry.offset_bytes + at, buffer);
      sum = crc32(buffer, sum);
    }
    if (sum != entry.crc32) fail(fmt::format("the content of entry '{}' does not have its checksum", printable(entry.name)));
  }

  void read_legacy() {
    const std::uint64_t size = source_.size_bytes;
    const auto not_torch = [&] {
      refuse("the file is a Python pickle but no PyTorch checkpoint",
             "load it with the program that wrote it and save the tensors with safetensors; weft never runs a pickle");
    };
    constexpr std::uint64_t kMaxMagicBytes = 64;
    const Pickle magic = [&] {
      try {
        return Pickle(source_, 0, std::min(size, kMaxMagicBytes));
      } catch (const Error&) {
        not_torch();
        throw;
      }
    }();
    constexpr std::string_view kMagic("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", 10);
    if (magic.large_integer(magic.root()) != kMagic) not_torch();
    const Pickle protocol(source_, magic.end(), size);
    if (protocol.integer(protocol.root()) != 1001) fail("the file's protocol is not 1001");
    const Pickle system(source_, protocol.end(), size);
    if (const std::optional<PickleRef> little = system.find(system.root(), "little_endian"))
      if (const std::optional<bool> value = system.boolean(*little)) out_.big_endian = !*value;
    pickle_.emplace(source_, system.end(), size);
    const Pickle keys(source_, pickle_->end(), size);
    if (keys.kind(keys.root()) != PickleKind::list) fail("the list of storages is no list");

    // The element types stand in the object's pickle; a storage that it does not name has no known size.
    std::unordered_map<std::string, DType> types;
    for_each_persistent([&](const StorageId& id) {
      if (!id.dtype) fail(fmt::format("storage '{}' has no type", printable(id.key)));
      const auto [at, is_new] = types.emplace(id.key, *id.dtype);
      if (!is_new && at->second != *id.dtype) fail(fmt::format("storage '{}' is said to be of two types", printable(id.key)));
    });
    std::uint64_t at = keys.end();
    for (const PickleRef item : keys.items(keys.root())) {
      const std::string key(keys.text(item));
      if (legacy_.contains(key)) fail(fmt::format("storage '{}' is there twice", printable(key)));
      const auto type = types.find(key);
      if (type == types.end()) fail(fmt::format("storage '{}' is stored but its type is nowhere said", printable(key)));
      if (size - at < 8) fail(fmt::format("the file ends before storage '{}'", printable(key)));
      std::array<std::byte, 8> bytes{};
      source_.read(at, bytes);
      std::uint64_t numel = 0;
      for (std::size_t i = 0; i < 8; ++i) numel |= std::to_integer<std::uint64_t>(bytes[out_.big_endian ? 7 - i : i]) << (8 * i);
      at += 8;
      if (numel > (size - at) / element_bytes(type->second))
        fail(fmt::format("storage '{}' claims {} elements but the file has {} bytes left", printable(key), numel, size - at));
      const std::uint64_t length = numel * element_bytes(type->second);
      legacy_.emplace(key, static_cast<std::uint32_t>(out_.storages.size()));
      out_.storages.push_back({key, at, length, 0, false});
      at += length;
    }
    find_model();
  }

  // ---- Storages ----

  StorageId parse_id(PickleRef persistent) const {
    const Pickle& p = *pickle_;
    const PickleRef id = p.persistent_id(persistent);
    const std::span<const PickleRef> parts = p.items(id);
    if (p.kind(id) != PickleKind::tuple || parts.size() < 5 || p.text(parts[0]) != "storage") fail("a persistent object is no storage");
    StorageId out;
    const std::string_view type = p.text(parts[1]);
    const std::string_view name = type.substr(type.rfind('.') == std::string_view::npos ? 0 : type.rfind('.') + 1);
    const auto known = std::find_if(std::begin(kStorageTypes), std::end(kStorageTypes), [name](const NamedType& t) { return t.name == name; });
    if (known != std::end(kStorageTypes))
      out.dtype = known->dtype;
    else if (name != "UntypedStorage")
      throw Unrepresentable{"tensor in " + printable(name)};
    if (p.kind(parts[2]) == PickleKind::text)
      out.key = p.text(parts[2]);
    else if (const std::optional<std::int64_t> number = p.integer(parts[2]))
      out.key = std::to_string(*number);
    if (out.key.empty() || out.key.find('/') != std::string::npos) fail("a storage has no usable key");
    const std::optional<std::int64_t> numel = p.integer(parts[4]);
    if (!numel || *numel < 0) fail(fmt::format("storage '{}' has no number of elements", printable(out.key)));
    out.numel = static_cast<std::uint64_t>(*numel);
    if (parts.size() > 5 && p.kind(parts[5]) == PickleKind::tuple) {  // a storage that is part of another: (key, first, length)
      const std::span<const PickleRef> view = p.items(parts[5]);
      const std::optional<std::int64_t> first = view.size() == 3 ? p.integer(view[1]) : std::nullopt;
      if (!first || *first < 0) fail(fmt::format("the view of storage '{}' makes no sense", printable(out.key)));
      out.first = static_cast<std::uint64_t>(*first);
    }
    return out;
  }

  template <typename Use>
  void for_each_persistent(Use&& use) {
    // Reached through the tensors of any depth; a plain walk over everything the pickle holds finds them all.
    std::unordered_set<PickleRef> seen;
    std::vector<PickleRef> todo = {pickle_->root()};
    while (!todo.empty()) {
      const PickleRef value = todo.back();
      todo.pop_back();
      if (!seen.insert(value).second) continue;
      switch (pickle_->kind(value)) {
        case PickleKind::persistent:
          try {
            use(parse_id(value));
          } catch (const Unrepresentable& what) {
            refuse(fmt::format("the file has a {}, whose size weft does not know, so that what follows cannot be found", what.kind),
                   "load it with PyTorch and save it anew");
          }
          break;
        case PickleKind::call:
          todo.push_back(pickle_->arguments(value));
          if (const std::optional<PickleRef> state = pickle_->state(value)) todo.push_back(*state);
          [[fallthrough]];
        default:
          for (const PickleRef item : pickle_->items(value)) todo.push_back(item);
      }
    }
  }

  /// The storage of an id, checked against the file.
  std::uint32_t storage_of(const StorageId& id, const std::string& tensor) {
    if (!zip_) {
      const auto found = legacy_.find(id.key);
      if (found == legacy_.end()) fail(fmt::format("storage '{}' is missing", printable(id.key)), tensor);
      return found->second;
    }
    const std::uint64_t size = checked_mul(id.numel, id.dtype ? element_bytes(*id.dtype) : 1, "storage");
    auto [at, is_new] = by_key_.try_emplace(id.key, static_cast<std::uint32_t>(out_.storages.size()));
    if (is_new) {
      TorchStorage storage;
      storage.key = id.key;
      if (const ZipEntry* entry = zip_->find(top_ + "data/" + id.key)) {
        zip_->require_stored(*entry);
        storage.offset_bytes = entry->offset_bytes;
        storage.size_bytes = entry->size_bytes;
        storage.crc32 = entry->crc32;
        storage.has_crc = true;
      } else if (id.numel != 0) {
        by_key_.erase(at);
        fail(fmt::format("the archive has no entry '{}data/{}' for it", printable(top_), printable(id.key)), tensor);
      }
      out_.storages.push_back(std::move(storage));
    }
    const TorchStorage& storage = out_.storages[at->second];
    if (storage.size_bytes != size)
      fail(fmt::format("storage '{}' has {} bytes, but {} elements need {}", printable(id.key), storage.size_bytes, id.numel, size), tensor);
    return at->second;
  }

  // ---- Tensors ----

  /// The function that makes a value, with its arguments, if it makes a tensor.
  struct Rebuild {
    std::string_view function;
    std::span<const PickleRef> arguments;
  };
  std::optional<Rebuild> rebuild_of(PickleRef value) const {
    const Pickle& p = *pickle_;
    for (int unwrapped = 0; unwrapped < 8; ++unwrapped) {
      if (p.kind(value) != PickleKind::call || p.kind(p.callee(value)) != PickleKind::global) return std::nullopt;
      std::string_view function = p.text(p.callee(value));
      std::span<const PickleRef> arguments = p.items(p.arguments(value));
      if (function == "torch._tensor._rebuild_from_type_v2" && arguments.size() >= 3 && p.kind(arguments[0]) == PickleKind::global) {
        function = p.text(arguments[0]);
        arguments = p.items(arguments[2]);
      }
      if ((function == "torch._utils._rebuild_parameter" || function == "torch._utils._rebuild_parameter_with_state" ||
           function == "torch.nn.parameter.Parameter") &&
          !arguments.empty()) {
        value = arguments[0];
        continue;
      }
      if (function.starts_with("torch._utils._rebuild_")) return Rebuild{function, arguments};
      return std::nullopt;
    }
    return std::nullopt;
  }

  std::vector<std::int64_t> integers(PickleRef value, const char* what, const std::string& tensor) const {
    const Pickle& p = *pickle_;
    if (p.kind(value) == PickleKind::call && p.text(p.callee(value)) == "torch.Size") {
      const std::span<const PickleRef> arguments = p.items(p.arguments(value));
      if (arguments.size() == 1) value = arguments[0];
    }
    if (p.kind(value) != PickleKind::tuple && p.kind(value) != PickleKind::list) fail(fmt::format("its {} is no tuple", what), tensor);
    if (p.items(value).size() > kMaxRank) refuse(fmt::format("its {} has more than {} dimensions", what, kMaxRank), kHostile, tensor);
    std::vector<std::int64_t> out;
    for (const PickleRef item : p.items(value)) {
      const std::optional<std::int64_t> number = p.integer(item);
      if (!number) fail(fmt::format("its {} holds {}, no integer", what, p.describe(item)), tensor);
      if (*number < 0) fail(fmt::format("its {} holds {}, a negative number", what, *number), tensor);
      out.push_back(*number);
    }
    return out;
  }

  TorchTensor tensor_of(const Rebuild& rebuild, const std::string& name) {
    const Pickle& p = *pickle_;
    const std::string_view function = rebuild.function.substr(std::string_view("torch._utils.").size());
    const bool is_v3 = function == "_rebuild_tensor_v3";
    if (!is_v3 && function != "_rebuild_tensor_v2" && function != "_rebuild_tensor")
      throw Unrepresentable{"tensor made by " + printable(rebuild.function)};
    const std::span<const PickleRef> a = rebuild.arguments;
    if (a.size() < (is_v3 ? 7U : 4U)) fail(fmt::format("{} was given {} arguments", printable(function), a.size()), name);
    const std::size_t metadata_at = is_v3 ? 7 : 6;
    if (a.size() > metadata_at && p.kind(a[metadata_at]) == PickleKind::dict && !p.items(a[metadata_at]).empty())
      throw Unrepresentable{"tensor with lazy conjugation or negation"};
    if (p.kind(a[0]) != PickleKind::persistent) throw Unrepresentable{"tensor without a storage (" + p.describe(a[0]) + ")"};
    const StorageId id = parse_id(a[0]);
    TorchTensor tensor;
    tensor.name = name;
    if (is_v3) {
      const std::string_view written = p.text(a[6]);
      const std::optional<DType> dtype = written.starts_with("torch.") ? dtype_from_any(written.substr(6)) : std::nullopt;
      if (!dtype || info(*dtype).bits % 8 != 0) throw Unrepresentable{"tensor of " + printable(written)};
      tensor.dtype = *dtype;
    } else {
      if (!id.dtype) fail("it has no element type", name);
      tensor.dtype = *id.dtype;
    }
    const std::optional<std::int64_t> offset = p.integer(a[1]);
    if (!offset || *offset < 0)
      fail(fmt::format("it begins at {}, no place in a storage", offset ? std::to_string(*offset) : p.describe(a[1])), name);
    tensor.offset = checked_add(static_cast<std::uint64_t>(*offset), id.first, "offset of a tensor");
    tensor.shape = integers(a[2], "shape", name);
    for (const std::int64_t stride : integers(a[3], "strides", name)) tensor.strides.push_back(static_cast<std::uint64_t>(stride));
    if (tensor.strides.size() != tensor.shape.size())
      fail(fmt::format("it has {} dimensions and {} strides", tensor.shape.size(), tensor.strides.size()), name);
    tensor.storage = storage_of(id, name);
    check_reach(tensor);
    return tensor;
  }

  void check_reach(TorchTensor& tensor) const {
    const TorchStorage& storage = out_.storages[tensor.storage];
    const std::uint64_t size = element_bytes(tensor.dtype);
    tensor.num_elements = 1;
    for (std::size_t d = 0; d < tensor.shape.size(); ++d) {
      tensor.num_elements = checked_mul(tensor.num_elements, static_cast<std::uint64_t>(tensor.shape[d]), "number of elements of a tensor");
    }
    const std::uint64_t size_bytes = checked_mul(tensor.num_elements, size, "size of a tensor");
    std::uint64_t expected = 1;
    tensor.contiguous = true;
    for (std::size_t d = tensor.shape.size(); d-- > 0;) {
      if (tensor.shape[d] != 1 && tensor.strides[d] != expected) tensor.contiguous = false;
      if (tensor.num_elements != 0) expected *= static_cast<std::uint64_t>(tensor.shape[d]);
    }
    if (tensor.num_elements == 0) {
      tensor.contiguous = true;
      tensor.offset = 0;
      return;
    }
    std::uint64_t last = tensor.offset;
    for (std::size_t d = 0; d < tensor.shape.size(); ++d)
      last = checked_add(last, checked_mul(static_cast<std::uint64_t>(tensor.shape[d]) - 1, tensor.strides[d], "stride of a tensor"),
                         "reach of a tensor");
    if (last >= storage.size_bytes / size)
      fail(fmt::format("the view {} with strides [{}] from {} reaches element {}, but storage '{}' has {}", to_string(tensor.shape),
                       fmt::join(tensor.strides, ", "), tensor.offset, last, printable(storage.key), storage.size_bytes / size),
           tensor.name);
    // A view may repeat elements, but a real one does so a few times at most, or is small.
    if (size_bytes > kMaxExpandedBytes && size_bytes / 64 > storage.size_bytes)
      refuse(fmt::format("the view {} repeats a storage of {} bytes into {}", to_string(tensor.shape), storage.size_bytes, size_bytes), kHostile,
             tensor.name);
  }

  // ---- Which dictionary is the model ----

  [[nodiscard]] bool is_mapping(PickleRef value) const {
    return pickle_->kind(value) == PickleKind::dict ||
           (pickle_->kind(value) == PickleKind::call && !rebuild_of(value) && !pickle_->items(value).empty());
  }
  /// The state of a pickled module.
  [[nodiscard]] std::optional<PickleRef> module_state(PickleRef value) const {
    if (pickle_->kind(value) != PickleKind::call || rebuild_of(value)) return std::nullopt;
    std::optional<PickleRef> state = pickle_->state(value);
    if (state && pickle_->kind(*state) == PickleKind::tuple && !pickle_->items(*state).empty()) state = pickle_->items(*state)[0];
    if (!state || (!pickle_->find(*state, "_parameters") && !pickle_->find(*state, "_modules"))) return std::nullopt;
    return state;
  }
  /// The key of an entry as part of a name; nothing when it is neither text nor a number.
  [[nodiscard]] std::optional<std::string> key_text(PickleRef key) const {
    if (pickle_->kind(key) == PickleKind::text) return std::string(pickle_->text(key));
    if (const std::optional<std::int64_t> number = pickle_->integer(key)) return std::to_string(*number);
    return std::nullopt;
  }

  [[nodiscard]] bool holds_tensors(PickleRef value, int depth = 0) {
    if (rebuild_of(value)) return true;
    if (depth > kMaxDepth || ++num_visits_ > kMaxVisits) return false;
    std::span<const PickleRef> entries;
    if (const std::optional<PickleRef> state = module_state(value)) {
      for (const char* part : {"_parameters", "_buffers", "_modules"})
        if (const std::optional<PickleRef> held = pickle_->find(*state, part); held && holds_tensors(*held, depth + 1)) return true;
      return false;
    }
    if (is_mapping(value)) entries = pickle_->items(value);
    if (!on_path_.insert(value).second) return false;
    bool found = false;
    for (std::size_t i = 0; i + 1 < entries.size() && !found; i += 2) found = holds_tensors(entries[i + 1], depth + 1);
    on_path_.erase(value);
    return found;
  }

  void find_model() {
    const Pickle& p = *pickle_;
    PickleRef root = p.root();
    if (!options_.root.empty()) {
      root = chosen_root(root);
    } else if (is_mapping(root)) {
      std::size_t num_tensors = 0;
      const std::span<const PickleRef> entries = p.items(root);
      for (std::size_t i = 0; i + 1 < entries.size(); i += 2) num_tensors += rebuild_of(entries[i + 1]).has_value();
      if (num_tensors * 4 <= entries.size()) {  // not most of them
        for (const char* key : {"state_dict", "model_state_dict", "model", "module", "ema", "state_dict_ema", "params", "net"}) {
          const std::optional<PickleRef> held = p.find(root, key);
          num_visits_ = 0;
          if (!held || !holds_tensors(*held)) continue;
          for (std::size_t i = 0; i + 1 < entries.size(); i += 2)
            if (const std::optional<std::string> name = key_text(entries[i]); name && *name != key)
              out_.skipped.emplace_back(*name, describe(entries[i + 1]));
          root = *held;
          break;
        }
      }
    }
    num_visits_ = 0;
    on_path_.clear();
    if (const std::optional<Rebuild> only = rebuild_of(root))
      add_tensor(*only, "tensor");
    else
      collect(root, "", 0);
    if (out_.tensors.empty()) {
      std::vector<std::string> keys;
      if (is_mapping(p.root())) {
        const std::span<const PickleRef> entries = p.items(p.root());
        for (std::size_t i = 0; i + 1 < entries.size() && keys.size() < 12; i += 2)
          if (const std::optional<std::string> name = key_text(entries[i]))
            keys.push_back(fmt::format("{} ({})", printable(*name, 60), describe(entries[i + 1])));
      }
      refuse(keys.empty() ? fmt::format("the file holds no tensors: its pickle is {}", describe(p.root()))
                          : fmt::format("no tensors were found; the file holds {}", fmt::join(keys, ", ")),
             "name the dictionary that holds them with --root KEY");
    }
    strip_prefix();
    note_sharing();
  }

  [[nodiscard]] std::string describe(PickleRef value) const {
    const std::optional<Rebuild> rebuild = rebuild_of(value);
    return rebuild ? std::string("tensor") : pickle_->describe(value);
  }

  PickleRef chosen_root(PickleRef root) const {
    std::string_view left = options_.root;
    while (!left.empty()) {
      const std::optional<PickleRef> state = module_state(root);
      const PickleRef holder = state ? *state : root;
      const std::span<const PickleRef> entries = pickle_->items(holder);
      std::optional<PickleRef> next;
      std::size_t taken = 0;
      if (pickle_->kind(holder) == PickleKind::list || pickle_->kind(holder) == PickleKind::tuple) {
        const std::string_view part = left.substr(0, left.find('.'));
        for (std::size_t i = 0; i < entries.size(); ++i)
          if (part == std::to_string(i)) next = entries[i], taken = part.size();
      } else {
        // The longest key that fits: keys may hold dots themselves.
        for (std::size_t i = 0; i + 1 < entries.size(); i += 2) {
          const std::optional<std::string> key = key_text(entries[i]);
          if (!key || key->size() < taken || key->empty() || !left.starts_with(*key)) continue;
          if (left.size() == key->size() || left[key->size()] == '.') next = entries[i + 1], taken = key->size();
        }
      }
      if (!next) {
        std::vector<std::string> keys;
        for (std::size_t i = 0; i + 1 < entries.size() && keys.size() < 20; i += 2)
          if (const std::optional<std::string> key = key_text(entries[i])) keys.push_back(printable(*key, 60));
        throw Error(ErrorCode::not_found, fmt::format("the file has no '{}' (looking for '{}')", printable(options_.root), printable(left)),
                    {.file = source_.path.string(), .key = printable(options_.root)},
                    keys.empty() ? std::string("what is there holds no keys") : fmt::format("there are: {}", fmt::join(keys, ", ")));
      }
      root = *next;
      left.remove_prefix(std::min(left.size(), taken + 1));
    }
    return root;
  }

  void add_tensor(const Rebuild& rebuild, std::string name) {
    if (out_.tensors.size() >= kMaxTensors) refuse(fmt::format("it holds more than {} tensors", kMaxTensors), kHostile);
    try {
      out_.tensors.push_back(tensor_of(rebuild, name));
    } catch (const Unrepresentable& what) {
      if (num_passed_over_++ < 8) out_.warnings.push_back(fmt::format("'{}' was passed over: a {} cannot be read", printable(name), what.kind));
      out_.skipped.emplace_back(std::move(name), what.kind);
    }
  }

  void collect(PickleRef value, const std::string& prefix, int depth) {
    if (depth > kMaxDepth) refuse(fmt::format("its values are nested deeper than {}", kMaxDepth), kHostile);
    if (++num_visits_ > kMaxVisits) refuse(fmt::format("it names more than {} values", kMaxVisits), kHostile);
    if (!on_path_.insert(value).second) return;  // it contains itself
    const std::string dot = prefix.empty() ? "" : prefix + ".";
    if (const std::optional<PickleRef> state = module_state(value)) {
      const Pickle& p = *pickle_;
      std::unordered_set<std::string> transient;  // buffers that state_dict() leaves out
      if (const std::optional<PickleRef> names = p.find(*state, "_non_persistent_buffers_set")) {
        std::span<const PickleRef> items = p.items(*names);
        if (p.kind(*names) == PickleKind::call && p.items(p.arguments(*names)).size() == 1) items = p.items(p.items(p.arguments(*names))[0]);
        for (const PickleRef item : items) transient.emplace(p.text(item));
      }
      for (const char* part : {"_parameters", "_buffers"}) {
        const std::optional<PickleRef> held = p.find(*state, part);
        if (!held) continue;
        const std::span<const PickleRef> entries = p.items(*held);
        for (std::size_t i = 0; i + 1 < entries.size(); i += 2) {
          const std::optional<std::string> key = key_text(entries[i]);
          if (key && !transient.contains(*key)) add_value(*key, entries[i + 1], dot, depth);
        }
      }
      if (const std::optional<PickleRef> modules = p.find(*state, "_modules")) {
        const std::span<const PickleRef> entries = p.items(*modules);
        for (std::size_t i = 0; i + 1 < entries.size(); i += 2)
          if (const std::optional<std::string> key = key_text(entries[i]); key && p.kind(entries[i + 1]) != PickleKind::none)
            collect(entries[i + 1], dot + *key, depth + 1);
      }
    } else if (is_mapping(value)) {
      const std::span<const PickleRef> entries = pickle_->items(value);
      for (std::size_t i = 0; i + 1 < entries.size(); i += 2)
        if (const std::optional<std::string> key = key_text(entries[i])) add_value(*key, entries[i + 1], dot, depth);
    }
    on_path_.erase(value);
  }

  void add_value(const std::string& key, PickleRef value, const std::string& dot, int depth) {
    std::string name = dot + key;
    if (name.size() > 65536) refuse("a name of more than 65536 bytes", kHostile);
    if (const std::optional<Rebuild> rebuild = rebuild_of(value)) {
      if (!is_valid_utf8(name)) fail(fmt::format("a tensor is called '{}', which is no UTF-8", printable(name)));
      add_tensor(*rebuild, std::move(name));
    } else if (is_mapping(value) || module_state(value)) {
      collect(value, name, depth + 1);
    } else if (pickle_->kind(value) != PickleKind::none && out_.skipped.size() < kMaxTensors) {
      out_.skipped.emplace_back(std::move(name), describe(value));
    }
  }

  void strip_prefix() {
    if (options_.keep_prefix) return;
    std::string removed;
    for (bool again = true; again;) {
      again = false;
      for (const std::string_view prefix : {"module.", "_orig_mod."}) {
        if (!std::all_of(out_.tensors.begin(), out_.tensors.end(),
                         [&](const TorchTensor& t) { return t.name.starts_with(prefix) && t.name.size() > prefix.size(); }))
          continue;
        for (TorchTensor& tensor : out_.tensors) tensor.name.erase(0, prefix.size());
        removed += prefix;
        again = true;
      }
    }
    if (!removed.empty()) out_.warnings.push_back(fmt::format("the prefix '{}' of all names was removed (--keep-prefix keeps it)", removed));
  }

  void note_sharing() {
    std::unordered_map<std::uint32_t, std::size_t> users;
    for (const TorchTensor& tensor : out_.tensors)
      if (tensor.num_elements != 0) ++users[tensor.storage];
    std::size_t sharing = 0;
    for (const auto& [storage, count] : users) sharing += count > 1 ? count : 0;
    if (sharing > 0)
      out_.warnings.push_back(fmt::format("{} tensors share their values with others; each is read, and written, on its own", sharing));
  }

  const ByteSource& source_;
  const OpenOptions& options_;
  TorchContents out_;
  std::optional<Pickle> pickle_;
  const ZipDirectory* zip_ = nullptr;
  std::string top_;
  std::unordered_map<std::string, std::uint32_t> by_key_, legacy_;  ///< storages
  std::unordered_set<PickleRef> on_path_;
  std::uint64_t num_visits_ = 0;
  int num_passed_over_ = 0;
};

// ---- Checkpoint ---------------------------------------------------------------------------------------------------------------------------

/// The elements that a window of a storage must hold at once to gather a view.
constexpr std::uint64_t kWindowBytes = 16 << 20;

/// Steps through the elements of a view in their own order, giving each one's place in the storage.
class Odometer {
 public:
  Odometer(const TorchTensor& tensor, std::uint64_t element) : tensor_(tensor), index_(tensor.shape.size()), place_(tensor.offset) {
    for (std::size_t d = index_.size(); d-- > 0;) {
      const auto dim = static_cast<std::uint64_t>(tensor.shape[d]);
      index_[d] = element % dim;
      element /= dim;
      place_ += index_[d] * tensor.strides[d];
    }
  }
  [[nodiscard]] std::uint64_t place() const noexcept { return place_; }
  void next() noexcept {
    for (std::size_t d = index_.size(); d-- > 0;) {
      place_ += tensor_.strides[d];
      if (++index_[d] < static_cast<std::uint64_t>(tensor_.shape[d])) return;
      place_ -= index_[d] * tensor_.strides[d];
      index_[d] = 0;
    }
  }

 private:
  const TorchTensor& tensor_;
  std::vector<std::uint64_t> index_;
  std::uint64_t place_;
};

void swap_elements(DType dtype, std::span<std::byte> data) {
  const std::size_t size = dtype == DType::c64 ? 4 : static_cast<std::size_t>(element_bytes(dtype));
  for (std::size_t at = 0; at + size <= data.size(); at += size) std::reverse(data.data() + at, data.data() + at + size);
}

class TorchCheckpoint final : public Checkpoint {
 public:
  TorchCheckpoint(const std::filesystem::path& named, std::vector<std::string> warnings) {
    container_ = "pytorch";
    path_ = named;
    warnings_ = std::move(warnings);
  }

  /// kept: the tensors that the index places in this file; null: all.
  void add_file(const std::filesystem::path& path, const OpenOptions& options, const std::unordered_set<std::string_view>* kept) {
    Part part;
    part.file = File(path, FileMode::read);
    part.identity = part.file.identity();
    TorchContents contents = read_torch_contents(file_source(part.file), options);
    const auto file_index = static_cast<std::uint32_t>(files_.size());
    files_.push_back({path, part.identity.size_bytes});
    for (std::string& warning : contents.warnings)
      if (std::find(warnings_.begin(), warnings_.end(), warning) == warnings_.end()) warnings_.push_back(std::move(warning));
    skipped_.insert(skipped_.end(), std::make_move_iterator(contents.skipped.begin()), std::make_move_iterator(contents.skipped.end()));
    std::vector<std::size_t> order(contents.tensors.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    const auto place = [&](std::size_t i) {
      const TorchTensor& tensor = contents.tensors[i];
      return contents.storages[tensor.storage].offset_bytes + tensor.offset * element_bytes(tensor.dtype);
    };
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return place(a) < place(b); });
    std::size_t num_left_out = 0;
    for (const std::size_t i : order) {
      TorchTensor& tensor = contents.tensors[i];
      if (kept && !kept->contains(tensor.name)) {
        ++num_left_out;
        continue;
      }
      TensorInfo row;
      row.name = tensor.name;
      row.dtype = tensor.dtype;
      row.shape = tensor.shape;
      row.num_elements = tensor.num_elements;
      row.size_bytes = tensor.num_elements * element_bytes(tensor.dtype);
      row.file_index = file_index;
      row.offset_bytes = place(i);
      tensors_.push_back(std::move(row));
      views_.push_back(std::move(tensor));
    }
    if (num_left_out > 0)
      warnings_.push_back(
          fmt::format("{} tensors of '{}' are not placed there by the index and were left out", num_left_out, printable(path.filename().string())));
    part.storages = std::move(contents.storages);
    part.big_endian = contents.big_endian;
    parts_.push_back(std::move(part));
  }
  void finish() { index_tensors(); }

  void read_bytes(const TensorInfo& tensor, std::uint64_t offset, std::span<std::byte> out) const override {
    if (out.empty()) return;
    const std::size_t i = position(tensor);
    const TorchTensor& view = views_[i];
    const Part& part = parts_[tensors_[i].file_index];
    WEFT_ASSERT(offset <= tensors_[i].size_bytes && out.size() <= tensors_[i].size_bytes - offset);
    const bool swaps = part.big_endian && element_bytes(view.dtype) > 1;
    if (view.contiguous && !swaps) {
      part.file.read(tensors_[i].offset_bytes + offset, out);
      const TorchStorage& storage = part.storages[view.storage];
      if (storage.has_crc && out.size() == storage.size_bytes && crc32(out) != storage.crc32) throw_bad_crc(i, storage);
      return;
    }
    const std::uint64_t size = element_bytes(view.dtype);
    const std::uint64_t first = offset / size, end = (offset + out.size() + size - 1) / size;
    if (first * size == offset && out.size() % size == 0) return gather(i, first, out);
    std::vector<std::byte> whole(checked_size((end - first) * size, "elements"));
    gather(i, first, whole);
    std::memcpy(out.data(), whole.data() + (offset - first * size), out.size());
  }
  void will_read(const TensorInfo& tensor, std::uint64_t offset, std::uint64_t size_bytes) const noexcept override {
    const TensorInfo* own = find_tensor(tensor.name);
    if (own == nullptr || !views_[static_cast<std::size_t>(own - tensors_.data())].contiguous) return;
    parts_[own->file_index].file.will_read(own->offset_bytes + offset, size_bytes);
  }
  void check_unchanged() const override {
    for (const Part& part : parts_) {
      if (part.file.identity() == part.identity) continue;
      throw Error(ErrorCode::corrupt, "the file changed while it was read", {.file = part.file.path().string()},
                  "run the command again when nothing writes to the model any more");
    }
  }
  void verify_checksums() const override {
    std::vector<std::byte> buffer;
    for (const Part& part : parts_) {
      for (std::size_t s = 0; s < part.storages.size(); ++s) {
        const TorchStorage& storage = part.storages[s];
        if (!storage.has_crc) continue;
        std::uint32_t sum = 0;
        for (std::uint64_t at = 0; at < storage.size_bytes; at += buffer.size()) {
          buffer.resize(static_cast<std::size_t>(std::min<std::uint64_t>(storage.size_bytes - at, 1 << 20)));
          part.file.read(storage.offset_bytes + at, buffer);
          sum = crc32(buffer, sum);
        }
        if (sum == storage.crc32) continue;
        for (std::size_t i = 0; i < views_.size(); ++i)
          if (&parts_[tensors_[i].file_index] == &part && views_[i].storage == s) throw_bad_crc(i, storage);
      }
    }
  }

 private:
  struct Part {
    File file;
    FileIdentity identity;
    std::vector<TorchStorage> storages;
    bool big_endian = false;
  };

  [[noreturn]] void throw_bad_crc(std::size_t i, const TorchStorage& storage) const {
    throw Error(
        ErrorCode::corrupt,
        fmt::format("the bytes of tensor '{}' (storage '{}') do not have their checksum", printable(tensors_[i].name), printable(storage.key)),
        {.file = files_[tensors_[i].file_index].path.string(), .tensor = printable(tensors_[i].name), .byte = storage.offset_bytes}, kFetchAgain);
  }

  [[nodiscard]] std::size_t position(const TensorInfo& tensor) const {
    if (std::less_equal<>()(tensors_.data(), &tensor) && std::less<>()(&tensor, tensors_.data() + tensors_.size()))
      return static_cast<std::size_t>(&tensor - tensors_.data());
    return static_cast<std::size_t>(&this->tensor(tensor.name) - tensors_.data());  // a copy of the description
  }

  /// Elements [first, first + out) of a view, window by window of its storage.
  void gather(std::size_t i, std::uint64_t first, std::span<std::byte> out) const {
    const TorchTensor& view = views_[i];
    const Part& part = parts_[tensors_[i].file_index];
    const TorchStorage& storage = part.storages[view.storage];
    const std::uint64_t size = element_bytes(view.dtype);
    const std::uint64_t count = out.size() / size;
    std::uint64_t low = UINT64_MAX, high = 0;
    Odometer look(view, first);
    for (std::uint64_t e = 0; e < count; ++e, look.next()) {
      low = std::min(low, look.place());
      high = std::max(high, look.place());
    }
    std::vector<std::byte> window;
    for (std::uint64_t begin = low; begin <= high; begin += kWindowBytes / size) {
      const std::uint64_t end = std::min(high + 1, begin + kWindowBytes / size);
      window.resize(checked_size((end - begin) * size, "window"));
      part.file.read(storage.offset_bytes + begin * size, window);
      Odometer at(view, first);
      for (std::uint64_t e = 0; e < count; ++e, at.next()) {
        if (at.place() >= begin && at.place() < end)
          std::memcpy(out.data() + e * size, window.data() + (at.place() - begin) * size, static_cast<std::size_t>(size));
      }
    }
    if (part.big_endian) swap_elements(view.dtype, out);
  }

  std::vector<Part> parts_;         ///< of files_
  std::vector<TorchTensor> views_;  ///< of tensors_
};

}  // namespace

TorchContents read_torch_contents(const ByteSource& source, const OpenOptions& options) { return Reader(source, options).read(); }

std::shared_ptr<const Checkpoint> open_torch_files(const std::vector<std::filesystem::path>& files, const std::filesystem::path& named,
                                                   std::vector<std::string> warnings, const OpenOptions& options, const ShardIndex* index,
                                                   const std::filesystem::path& index_path) {
  auto checkpoint = std::make_shared<TorchCheckpoint>(named, std::move(warnings));
  for (std::size_t i = 0; i < files.size(); ++i) {
    std::unordered_set<std::string_view> kept;
    if (index) {
      for (const ShardIndex::Entry& entry : index->entries)
        if (entry.shard == i) kept.insert(entry.tensor);
    }
    checkpoint->add_file(files[i], options, index ? &kept : nullptr);
  }
  checkpoint->finish();
  if (index) {
    for (const ShardIndex::Entry& entry : index->entries)
      if (checkpoint->find_tensor(entry.tensor) == nullptr)
        throw Error(
            ErrorCode::corrupt,
            fmt::format("the index places tensor '{}' in '{}', which lacks it", printable(entry.tensor), printable(index->shards[entry.shard])),
            {.file = index_path.string(), .tensor = printable(entry.tensor)},
            "index and shards are of different versions, or one is damaged; fetch them again");
  }
  return checkpoint;
}

}  // namespace weft
