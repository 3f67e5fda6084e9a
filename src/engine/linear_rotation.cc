#include "engine/linear_step.h"
#include "engine/whole_model.h"

// QuaRot: the model is turned before anything is measured or rounded. What comes out is an ordinary model, for every format.
namespace weft::engine {
namespace {

class RotateStep final : public LinearStep {
 public:
  bool change_model(LinearPlan& plan, LazyModel& model) override {
    rotate_model(model, plan.options.seed, plan.options.allow_requantize);
    return true;
  }
};

}  // namespace

std::unique_ptr<LinearStep> make_rotate_step(const LinearPlan&) { return std::make_unique<RotateStep>(); }

}  // namespace weft::engine
