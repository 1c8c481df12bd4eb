(() => {
  "use strict";
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  if (!form || !list) return;
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const step = 30;
  const rows = Array.from(list.children, (item) => ({ item, text: null }));
  let limit = step;

  const matches = (row, wanted, words) => {
    for (const [key, value] of wanted) if (row.item.dataset[key] !== value) return false;
    if (!words.length) return true;
    row.text ??= row.item.textContent.toLowerCase();
    return words.every((word) => row.text.includes(word));
  };

  const apply = () => {
    const data = new FormData(form);
    const wanted = ["set", "lang", "topic", "base", "edited"].map((key) => [key, data.get(key)]).filter(([, value]) => value);
    if (data.get("changed")) wanted.push(["changed", ""]);
    const words = String(data.get("text") || "").toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      const match = matches(row, wanted, words);
      if (match) found += 1;
      row.item.hidden = !match || found > limit;
    }
    const all = rows.length;
    count.textContent = found === all ? `${all} prompts` : `${found} of ${all} prompts`;
    more.hidden = found <= limit;
    more.textContent = `Show ${Math.min(step, found - limit)} more`;
  };

  const again = () => { limit = step; apply(); };
  form.addEventListener("input", again);
  form.addEventListener("reset", () => setTimeout(again));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => {
    const next = rows.filter((row) => !row.item.hidden).length;
    limit += step;
    apply();
    const first = rows.filter((row) => !row.item.hidden)[next];
    if (first) { first.item.tabIndex = -1; first.item.focus({ preventScroll: true }); }
  });
  form.hidden = false;
  apply();
})();
