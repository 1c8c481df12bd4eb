(() => {
  "use strict";
  const source = document.getElementById("transcripts");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const at = (id) => document.getElementById(id);
  const form = at("filters"), list = at("list"), one = at("one"), reader = at("reader"), printed = at("printed");
  const both = "after" in reader.dataset;
  const names = both ? ["base", reader.dataset.after] : [""];
  const PRINTED = 200; // prompts on paper
  const AROUND = 6; // rows that are kept above and below those in view

  // A row: set, language, topic, prompt, facts, official line, and its sides. A side: outcome, worth, reason, grade, fact, rule, thought, text.
  const SET = 0, LANG = 1, TOPIC = 2, PROMPT = 3, FACTS = 4, OFFICIAL = 5, SIDES = 6;
  const OUTCOME = 0, WORTH = 1, REASON = 2, GRADE = 3, FACT = 4, RULE = 5, THOUGHT = 6, TEXT = 7;
  const rows = data.rows;
  const kind = (place) => (place < 0 ? null : { name: data.kinds[place][0], title: data.kinds[place][1], group: data.kinds[place][3] });
  const words = (side) => side[TEXT].map((piece) => (typeof piece === "string" ? piece : piece[1])).join("");
  const searched = new Array(rows.length);
  const text = (place) => searched[place] ??= [
    rows[place][PROMPT], data.sets[rows[place][SET]], data.topics[rows[place][TOPIC]], ...rows[place][FACTS], rows[place][OFFICIAL],
    ...rows[place].slice(SIDES).flatMap((side) => [words(side), side[THOUGHT] === -1 ? "" : side[THOUGHT], side[RULE],
      ...[OUTCOME, WORTH, REASON].map((key) => kind(side[key])?.title ?? "")]),
  ].join("\n").toLowerCase();

  let found = []; // places of the rows that the filters let through
  let here = 0; // which of them is read
  const shown = new Map(); // the rows in the document, by their place in found

  // --- elements -----------------------------------------------------------------------------------------------------------------
  const element = (tag, className, said, lang) => {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (said !== undefined) made.textContent = said;
    if (lang) made.lang = lang;
    return made;
  };
  const own = (tag, className, said, lang) => { const made = element(tag, className, said, lang); made.dir = "auto"; return made; };
  const chip = (place, more = "") => {
    const { name, title } = kind(place);
    return element("b", `chip o-${name}`, title + more);
  };
  const said = (label, texts) => {
    const made = element("p", "m", label);
    texts.forEach((each, i) => made.append(i ? " · " : "", element("bdi", "", each)));
    return made;
  };
  const sideOf = (side, name, lang) => {
    const made = element("div"), top = element("p", "c");
    top.append(chip(side[OUTCOME]));
    if (side[REASON] >= 0) top.append(chip(side[REASON]));
    if (side[WORTH] >= 0) top.append(chip(side[WORTH], side[GRADE] ? ` ${side[GRADE]}/5` : ""));
    top.append(name, name && side[RULE] ? " · " : "", element("span", "rule", side[RULE]));
    if (side[FACT] >= 0) top.append(side[FACT] ? " · facts" : " · no facts");
    made.append(top);
    if (side[THOUGHT] !== -1) made.append(own("p", "x t", side[THOUGHT] || "(an empty thought)", lang));
    const answer = own("p", "x", undefined, lang);
    for (const piece of side[TEXT]) answer.append(typeof piece === "string" ? piece : element("mark", `w-${data.why[piece[0]]}`, piece[1]));
    made.append(answer);
    return made;
  };
  const entry = (row) => {
    const lang = data.langs[row[LANG]][1], made = document.createDocumentFragment(), sides = element("div", "sides");
    made.append(own("p", "q", row[PROMPT], lang));
    made.append(said("", [data.sets[row[SET]], data.topics[row[TOPIC]], data.langs[row[LANG]][0]].filter(Boolean)));
    if (row[FACTS].length) made.append(said("facts: ", row[FACTS]));
    if (row[OFFICIAL]) made.append(said("official line: ", [row[OFFICIAL]]));
    row.slice(SIDES).forEach((side, i) => sides.append(sideOf(side, names[i], lang)));
    made.append(sides);
    return made;
  };

  // --- the list: only the rows in view are in the document ----------------------------------------------------------------------
  const room = element("div", "room");
  room.setAttribute("role", "presentation");
  list.append(room);
  let tall = 56;
  const brief = (side) => kind(side[WORTH] >= 0 ? side[WORTH] : side[REASON] >= 0 ? side[REASON] : side[OUTCOME]);
  const line = (place) => {
    const row = rows[found[place]], made = element("div", "row"), under = element("span", "u");
    made.id = `row-${place}`;
    made.setAttribute("role", "option");
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-setsize", found.length);
    made.setAttribute("aria-selected", place === here);
    made.append(own("span", "p", row[PROMPT].slice(0, 200), data.langs[row[LANG]][1]));
    row.slice(SIDES).forEach((side, i) => {
      const { name, title } = brief(side);
      if (i) under.append(" → ");
      under.append(element("b", `chip o-${name}`, title));
    });
    under.append(" ", element("bdi", "", data.sets[row[SET]]));
    made.append(under);
    made.style.transform = `translateY(${place * tall}px)`;
    return made;
  };
  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / tall) - AROUND);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / tall) + AROUND);
    for (const [place, made] of shown) if (place < first || place >= last) { made.remove(); shown.delete(place); }
    for (let place = first; place < last; place += 1) if (!shown.has(place)) {
      const made = line(place);
      shown.set(place, made);
      room.append(made);
    }
    if (shown.has(here)) list.setAttribute("aria-activedescendant", `row-${here}`);
    else list.removeAttribute("aria-activedescendant");
  };
  const redraw = () => {
    room.replaceChildren();
    shown.clear();
    tall = parseFloat(getComputedStyle(document.documentElement).fontSize) * 3.5;
    room.style.height = `${found.length * tall}px`;
    draw();
  };

  // --- reading ------------------------------------------------------------------------------------------------------------------
  const read = () => {
    one.replaceChildren(...(found.length ? [entry(rows[found[here]])] : [element("p", "dim", "No prompt is like that.")]));
    at("place").textContent = found.length ? `${(here + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}` : "";
    at("previous").setAttribute("aria-disabled", here <= 0); // not disabled: a disabled button loses the focus
    at("next").setAttribute("aria-disabled", here >= found.length - 1);
  };
  const go = (place) => {
    if (!found.length) return;
    shown.get(here)?.setAttribute("aria-selected", false);
    here = Math.max(0, Math.min(found.length - 1, place));
    if (here * tall < list.scrollTop) list.scrollTop = here * tall;
    else if ((here + 1) * tall > list.scrollTop + list.clientHeight) list.scrollTop = (here + 1) * tall - list.clientHeight;
    draw();
    shown.get(here)?.setAttribute("aria-selected", true);
    read();
  };
  const step = (by) => {
    if (!(here + by in found)) return;
    go(here + by);
    const start = one.getBoundingClientRect().top, hidden = at("steps").getBoundingClientRect().bottom; // the buttons may lie over it
    if (start < Math.max(0, hidden) || start > innerHeight - 200) one.parentElement.scrollIntoView({ block: "start" });
  };

  // --- filters ------------------------------------------------------------------------------------------------------------------
  const wanted = () => {
    const given = Object.fromEntries(new FormData(form));
    const number = (key) => (given[key] ? Number(given[key]) : null);
    const option = (key, values) => (given[key] ? values.indexOf(form.elements[key].selectedOptions[0].textContent) : null);
    const kinds = [OUTCOME, WORTH, REASON].map((key, i) => [key, given[["outcome", "worth", "reason"][i]] || ""]).filter(([, name]) => name);
    return {
      fields: [[SET, number("set")], [LANG, option("lang", data.langs.map(([name]) => name))], [TOPIC, option("topic", data.topics)]]
        .filter(([, value]) => value !== null),
      kinds: kinds.map(([key, name]) => [key, new Set(data.kinds.flatMap((each, i) => (each[0] === name || (name === "withheld" && each[3] === name) ? [i] : [])))]),
      condition: number("condition"),
      changed: Boolean(given.changed),
      terms: String(given.text || "").toLowerCase().split(/\s+/).filter(Boolean),
    };
  };
  const matches = (place, ask) => {
    const row = rows[place];
    for (const [key, value] of ask.fields) if (row[key] !== value) return false;
    if (ask.changed && row[SIDES][OUTCOME] === row[SIDES + 1][OUTCOME] && row[SIDES][WORTH] === row[SIDES + 1][WORTH]) return false;
    if (ask.kinds.length) {
      const sides = ask.condition === null ? row.slice(SIDES) : [row[SIDES + ask.condition]];
      if (!sides.some((side) => ask.kinds.every(([key, places]) => places.has(side[key])))) return false;
    }
    return ask.terms.every((term) => text(place).includes(term));
  };
  const apply = () => {
    const ask = wanted(), before = found[here];
    found = rows.map((_, place) => place).filter((place) => matches(place, ask));
    here = Math.max(0, found.indexOf(before));
    const all = rows.length.toLocaleString("en"), left = found.length.toLocaleString("en");
    at("count").textContent = found.length === rows.length ? `${all} prompts` : `${left} of ${all} prompts`;
    list.scrollTop = 0;
    redraw();
    go(here);
    read();
  };

  // --- paper: the first prompts that the filters let through --------------------------------------------------------------------
  const print = () => {
    const items = element("ol", "list");
    for (const place of found.slice(0, PRINTED)) {
      const item = element("li");
      item.append(entry(rows[place]));
      items.append(item);
    }
    const left = found.length > PRINTED ? `The first ${PRINTED} of the ${found.length} prompts that the filters let through.` : "";
    printed.replaceChildren(element("p", "m", left), items);
  };
  const clear = () => printed.replaceChildren();
  addEventListener("beforeprint", print);
  addEventListener("afterprint", clear);
  matchMedia("print").addEventListener("change", (event) => (event.matches ? print() : clear()));

  // --- keys and pointer ---------------------------------------------------------------------------------------------------------
  const KEYS = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity };
  list.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(here + KEYS[event.key]);
  });
  reader.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  });
  list.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row) go(Number(row.id.slice(4)));
  });
  list.addEventListener("scroll", draw, { passive: true });
  addEventListener("resize", redraw);
  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  form.addEventListener("input", apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", (event) => event.preventDefault());

  addEventListener("pageshow", apply); // on the way back the browser fills the filters in again, after this script

  form.hidden = reader.hidden = false;
  at("listed").remove();
  apply();
  let warm = 0; // the search's texts, made while nothing else is to be done
  const prepare = (idle) => {
    while (warm < rows.length && idle.timeRemaining() > 2) { text(warm); warm += 1; }
    if (warm < rows.length) requestIdleCallback(prepare);
  };
  globalThis.requestIdleCallback?.(prepare);
})();
