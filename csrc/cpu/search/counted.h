// What searches do, counted over all of them (Counters of api.h).
#pragma once

#include <cstdint>

namespace vecbank::cpu {

enum class Counted { queries, refined, repeated, bytes, dimensions, pairs, screened };

// `which`: of the screens, in the order of kScreens.
void count(Counted what, int64_t more, int which = 0);

}  // namespace vecbank::cpu
