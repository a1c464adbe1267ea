// The stamps of packs that lie where the host cannot read them (core/stamps.h).
#include "check.h"
#include "core/stamps.h"

namespace {

using namespace vecbank;

PackStamp stamp(uint64_t data, int64_t version) {
  PackStamp s{};
  s.data = data;
  s.version = version;
  return s;
}

TEST(pack_stamps_belong_to_an_address) {
  PackStamps all(4);
  const char packs[6] = {};
  CHECK(!all.held(packs));  // the caller is responsible
  all.put(packs, stamp(64, 1));
  CHECK(all.held(packs) && all.is(packs, stamp(64, 1)));
  CHECK(!all.is(packs, stamp(64, 2)) && !all.is(packs, stamp(128, 1)));
  CHECK(!all.held(packs + 1) && !all.is(packs + 1, stamp(64, 1)));
  all.put(packs, stamp(64, 2));  // a later pack at that address
  CHECK(all.is(packs, stamp(64, 2)) && !all.is(packs, stamp(64, 1)));
  all.erase(packs);  // one that is not stamped
  CHECK(!all.held(packs) && !all.is(packs, stamp(64, 2)));
}

TEST(pack_stamps_that_were_lost_are_not_believed) {
  PackStamps all(4);
  const char packs[6] = {};
  for (int i = 0; i < 4; ++i) all.put(packs + i, stamp(64, i));
  all.put(packs + 3, stamp(64, 7));  // takes no room
  CHECK(all.is(packs, stamp(64, 0)) && all.is(packs + 3, stamp(64, 7)) && !all.held(packs + 5));
  all.put(packs + 4, stamp(64, 4));
  CHECK(all.is(packs + 4, stamp(64, 4)));
  CHECK(all.held(packs) && !all.is(packs, stamp(64, 0)));  // stale, rather than not checked
}

}  // namespace
