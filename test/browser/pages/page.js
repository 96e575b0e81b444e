// What all pages have in common. A page is told in its query what to do: COLLECTOR
// is where its SDK logs to, KEY the write key, RUN goes into every name, VISITOR is
// who visits, in every session of theirs, COUNT is how many exposures there are to
// log, OPTIONS more settings of the SDK. A page sets
//
//   ready    a promise, where the SDK has to load first
//   log      see exposures()
//   flush()  sends what was logged, as far as the SDK has such a thing
const query = new URLSearchParams(location.search);
const collector = query.get("collector");
const key = query.get("key");
const run = query.get("run");
const visitor = query.get("visitor");
const count = Number(query.get("count"));
const options = JSON.parse(query.get("options") || "{}");
const variant = (i) => (i % 2 ? "b" : "a");

/** Sets log(): it makes the SDK log exposures first to last-1 and returns what must be stored. */
function exposures(one) {
  window.log = async (first = 0, last = count) => {
    await window.ready;
    const rows = [];
    for (let i = first; i < last; i++) {
      const from = Date.now();
      const row = one(i);
      rows.push({ ...row, from, to: Date.now() });
    }
    return rows;
  };
}
