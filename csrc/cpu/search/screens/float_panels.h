// The float32 panels that a screen visits: those of the pack, or, where the pack holds codes, panels that are written
// from the bank's rows at each visit.
#pragma once

#include "../../panel_writer.h"
#include "screen.h"

namespace vecbank::cpu {

class FloatPanels {
 public:
  bool reserve(const SearchProblem& problem, const SearchPlan& plan, int64_t panels) {
    if (plan.panels == PanelKind::float32) return true;
    return writer_.reserve(problem.bank, {}) && written_.reserve(panels * (problem.bank.width + 3) * kPanel);
  }

  void begin(const SearchJob& job) {
    job_ = &job;
    stored_ = job.header.panels == PanelKind::float32;
    start_per_r2_ = start_bound_per_r2(static_cast<Metric>(job.header.metric), job.header.width);
    visit_ = kNoVisit;
  }

  bool stored() const { return stored_; }
  int64_t bytes() const {  // read for a panel
    const Rows& bank = job_->problem.bank;
    return stored_ ? stride() * 4 : kPanel * bank.width * static_cast<int64_t>(size_of(bank.dtype));
  }
  int64_t stride() const { return (job_->header.width + 3) * kPanel; }

  // The first panel of a visit.
  const float* of(const Visit& visit) {
    if (stored_) return pack_panels(&job_->header).panel(visit.from);
    if (visit_.covers(visit)) return written_.get();
    visit_ = visit;
    const RowKind* kinds = pack_kinds(&job_->header);
    double norms[kPanel];
    for (int64_t p = visit.from; p < visit.to; ++p)
      writer_.write(
          job_->problem.bank, job_->header, p, job_->problem.bias, norms,
          [&](int64_t j, const ColumnFacts&, double) { return kinds[j]; },
          written_.get() + (p - visit.from) * stride());
    return written_.get();
  }

  // The panel that is needed after a visit; null: there is none yet.
  const float* after(const Visit& visit) const {
    return stored_ ? pack_panels(&job_->header).panel(visit.next) : nullptr;
  }

  // What bounds a column's error, with the names of core/bounds.h: r_b and beta_b.
  struct ColumnError {
    double r, start;
  };
  ColumnError error(int64_t panel, int lane) const {
    const PackHeader& h = job_->header;
    const float* lines = stored_ ? pack_panels(&h).panel(panel) : written_.get() + (panel - visit_.from) * stride();
    const double r = static_cast<double>(lines[(h.width + 1) * kPanel + lane]);
    double start = start_per_r2_ * r * r;
    if (h.biased) start += start_bound(h.width, 2.0 * std::fabs(static_cast<double>(lines[lane])));
    return {r, start};
  }

 private:
  const SearchJob* job_ = nullptr;
  bool stored_ = true;
  double start_per_r2_ = 0.0;
  PanelWriter<float> writer_;
  Buffer<float> written_;
  Visit visit_ = kNoVisit;  // whose panels are written
};

}  // namespace vecbank::cpu
