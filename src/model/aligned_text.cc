#include "model/aligned_text.h"

#include <algorithm>

namespace weft::model {

AlignedText::AlignedText(std::string_view text, std::uint32_t base, Tracking tracking)
    : text_(text), base_(base), tracked_(tracking == Tracking::on) {
  if (!tracked_) return;
  source_.resize(text_.size());
  for (std::size_t at = 0; at < text_.size();) {
    const std::uint32_t size = decode_utf8(text_.data() + at).size_bytes;
    const auto begin = static_cast<std::uint32_t>(base_ + at);
    for (std::size_t i = 0; i < size; ++i) source_[at + i] = {begin, begin + size};
    at += size;
  }
}

AlignedText::AlignedText(const TextPiece& piece) : text_(piece.text), base_(piece.base), tracked_(piece.source != nullptr) {
  if (tracked_) source_.assign(piece.source, piece.source + piece.text.size());
}

void AlignedText::append(char32_t c, SourceRange source, std::string& text, std::vector<SourceRange>& sources) const {
  append_utf8(text, c);
  if (tracked_) sources.resize(text.size(), source);
}

void AlignedText::transform(std::span<const Change> changes, std::size_t skipped) {
  std::string text;
  text.reserve(text_.size());
  std::vector<SourceRange> sources;
  if (tracked_) sources.reserve(text_.size());
  std::size_t at = 0;
  const auto skip = [&](std::size_t count) {
    for (; count > 0 && at < text_.size(); --count) at += decode_utf8(text_.data() + at).size_bytes;
  };
  skip(skipped);
  for (const Change& change : changes) {
    SourceRange source{base_, base_};
    if (tracked_ && !source_.empty()) {
      if (change.change <= 0)
        source = source_[std::min(at, source_.size() - 1)];
      else if (at > 0)
        source = source_[at - 1];
    }
    if (change.change <= 0) skip(1 + static_cast<std::size_t>(-static_cast<std::int64_t>(change.change)));
    append(change.code_point, source, text, sources);
  }
  text_ = std::move(text);
  source_ = std::move(sources);
}

void AlignedText::Rewriting::put(std::string_view part, std::size_t begin, std::size_t end) {
  out_ += part;
  if (!text_.tracked_) return;
  SourceRange source{text_.base_, text_.base_};
  if (begin < end)
    source = {text_.source_[begin].begin, text_.source_[end - 1].end};
  else if (begin < text_.source_.size())
    source = {text_.source_[begin].begin, text_.source_[begin].begin};
  else if (!text_.source_.empty())
    source = {text_.source_.back().end, text_.source_.back().end};
  source_.resize(out_.size(), source);
}

void AlignedText::Rewriting::drop(std::size_t size_bytes) {
  out_.resize(out_.size() - size_bytes);
  if (text_.tracked_) source_.resize(out_.size());
}

void AlignedText::Rewriting::finish() {
  text_.text_ = std::move(out_);
  text_.source_ = std::move(source_);
}

void AlignedText::prepend(std::string_view prefix) {
  if (text_.empty()) return;
  text_.insert(0, prefix);
  // All that is inserted has the place of the first character, as the reference says it.
  if (tracked_) source_.insert(source_.begin(), prefix.size(), SourceRange(source_.front()));
}

void AlignedText::replace(std::span<const Match> matches, std::string_view content) {
  if (matches.empty()) return;
  std::string text;
  text.reserve(text_.size());
  std::vector<SourceRange> sources;
  if (tracked_) sources.reserve(text_.size());
  std::size_t last = 0;
  const auto keep = [&](std::size_t end) {
    text.append(text_, last, end - last);
    if (tracked_)
      sources.insert(sources.end(), source_.begin() + static_cast<std::ptrdiff_t>(last), source_.begin() + static_cast<std::ptrdiff_t>(end));
  };
  for (const Match& match : matches) {
    keep(match.begin);
    text.append(content);
    if (tracked_) sources.resize(text.size(), match.end == 0 ? SourceRange{base_, base_} : source_[match.end - 1]);
    last = match.end;
  }
  keep(text_.size());
  text_ = std::move(text);
  source_ = std::move(sources);
}

}  // namespace weft::model
