// What searches do, counted over all of them (Counters of api.h).
#pragma once

#include "../api.h"

namespace vecbank::cpu {

enum class Counted { queries, refined, repeated, bytes, dimensions, pairs, screened };

// `which`: of the screens, in the order of kScreens.
void count(Counted what, int64_t more, int which = 0);

// Adds to what take_head_use() returns.
void add_head_use(const void* pack, const HeadUse& more);

}  // namespace vecbank::cpu
