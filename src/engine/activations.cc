#include "engine/activations.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/checksum.h"
#include "weft/error.h"

namespace weft::engine {

std::uint64_t CalibrationTokens::num_tokens() const noexcept {
  std::uint64_t total = 0;
  for (const auto& sequence : sequences) total += sequence.size();
  return total;
}

std::size_t CalibrationTokens::longest() const noexcept {
  std::size_t most = 0;
  for (const auto& sequence : sequences) most = std::max(most, sequence.size());
  return most;
}

std::string CalibrationTokens::digest() const {
  Hasher hasher;
  for (const auto& sequence : sequences) {
    const std::uint64_t size = sequence.size();
    hasher.add(std::as_bytes(std::span(&size, 1)));
    hasher.add(std::as_bytes(std::span(sequence)));
  }
  hasher.add(std::as_bytes(std::span(groups)));
  return to_string(hasher.checksum());
}

void BlockTap::batch(std::size_t, std::size_t, std::uint64_t) {}

Activations::Activations(model::Network& network, std::shared_ptr<const CalibrationTokens> tokens, const std::filesystem::path& file)
    : network_(&network), tokens_(std::move(tokens)), hidden_(static_cast<std::size_t>(network.config().hidden)) {
  std::uint64_t token = 0;
  std::size_t group = 0;
  for (std::size_t s = 0; s < tokens_->sequences.size(); ++s) {
    const std::size_t rows = tokens_->sequences[s].size();
    while (group + 1 < tokens_->groups.size() && s >= tokens_->groups[group + 1]) ++group;
    if (batches_.empty() || batches_.back().num_rows + rows > kBatchRows || batches_.back().group != group)
      batches_.push_back({s, 0, token, 0, group});
    Batch& batch = batches_.back();
    ++batch.num_sequences;
    batch.num_rows += rows;
    token += rows;
  }
  if (batches_.empty()) throw Error(ErrorCode::invalid_argument, "there are no calibration sequences", {}, "give a text with --text");
  if (file.empty()) {
    rows_.resize(checked_size(size_bytes() / sizeof(float), "the size of activations"));
    return;
  }
  file_ = File(file, FileMode::create_new);
  remove_at_end_ = file;
  file_.allocate(size_bytes());
}

Activations::~Activations() {
  if (remove_at_end_.empty()) return;
  std::error_code ignored;
  std::filesystem::remove(remove_at_end_, ignored);
}

std::uint64_t Activations::size_bytes() const noexcept { return tokens_->num_tokens() * hidden_ * sizeof(float); }

std::vector<model::TokenChunk> Activations::chunks(const Batch& batch) const {
  std::vector<model::TokenChunk> all;
  for (std::size_t s = 0; s < batch.num_sequences; ++s) all.push_back({nullptr, tokens_->sequences[batch.first_sequence + s], {}});
  return all;
}

void Activations::read(const Batch& batch, std::vector<float>& out) const {
  out.resize(batch.num_rows * hidden_);
  if (is_resident())
    std::memcpy(out.data(), rows_.data() + batch.first_token * hidden_, out.size() * sizeof(float));
  else
    file_.read(batch.first_token * hidden_ * sizeof(float), std::as_writable_bytes(std::span(out)));
}

void Activations::write(const Batch& batch, std::span<const float> rows) {
  WEFT_ASSERT(rows.size() == batch.num_rows * hidden_);
  if (is_resident())
    std::memcpy(rows_.data() + batch.first_token * hidden_, rows.data(), rows.size_bytes());
  else
    file_.write(batch.first_token * hidden_ * sizeof(float), std::as_bytes(rows));
}

void Activations::embed(const std::function<model::Network&(const Batch&)>& with) {
  for (const Batch& batch : batches_) write(batch, (with ? with(batch) : *network_).embed(chunks(batch), batch.first_sequence));
}

void Activations::run(const Batch& batch, std::size_t layer, const model::BlockWeights& weights, std::span<float> rows, BlockTap* tap) {
  run(batch, layer, weights, model::BlockStop::attention, model::BlockStop::end, rows, {}, {}, tap);
}

void Activations::run(const Batch& batch, std::size_t layer, const model::BlockWeights& weights, model::BlockStop from, model::BlockStop to,
                      std::span<float> rows, std::span<const float> in, std::span<float> out, BlockTap* tap) {
  if (on_batch) on_batch(batch);
  if (tap != nullptr) tap->batch(batch.first_sequence, batch.num_sequences, batch.first_token);
  network_->run_block(layer, weights, chunks(batch), from, to, rows, in, out, tap, batch.first_sequence);
}

void Activations::run(std::size_t layer, const model::BlockWeights& weights, Then then, BlockTap* tap) {
  std::vector<float> rows;
  for (const Batch& batch : batches_) {
    read(batch, rows);
    run(batch, layer, weights, rows, tap);
    if (then == Then::advance) write(batch, rows);
  }
}

void Activations::save(const std::filesystem::path& path) const {
  if (path_kind(path) != PathKind::nothing) remove_file(path);
  File file(path, FileMode::create_new);
  file.allocate(size_bytes());
  std::vector<float> rows;
  for (const Batch& batch : batches_) {
    read(batch, rows);
    file.write(batch.first_token * hidden_ * sizeof(float), std::as_bytes(std::span(rows)));
  }
  file.sync();
  file.close();
}

void Activations::load(const std::filesystem::path& path) {
  const File file(path, FileMode::read);
  if (file.size_bytes() != size_bytes())
    throw Error(ErrorCode::corrupt, "saved activations have another size than these sequences need", {.file = path.string()},
                "remove the folder that it lies in and begin anew");
  std::vector<float> rows;
  for (const Batch& batch : batches_) {
    rows.resize(batch.num_rows * hidden_);
    file.read(batch.first_token * hidden_ * sizeof(float), std::as_writable_bytes(std::span(rows)));
    write(batch, rows);
  }
}

}  // namespace weft::engine
