#pragma once

#include <stdexcept>

namespace fastwm {

// The user stopped an operator.
struct __attribute__((visibility("default"))) Stopped : std::runtime_error {
  Stopped() : std::runtime_error("fastwm: stopped by the user") {}
};

}  // namespace fastwm
