"use strict";
// What models wrote reaches the page as text nodes alone: nothing here parses markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const form = byId("filters"), list = byId("list"), main = byId("pair"), help = byId("help");
  const PAGE = 50;
  let shown = [], total = 0, first = 0, at = -1, asked = 0, unfolded = false, marked = true;

  // Nodes -------------------------------------------------------------------------------------

  const el = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined || child === "") continue;
      node.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return node;
  };
  const number = (value, digits = 3) =>
    value === null || value === undefined ? "–" : (Number(value.toFixed(digits)) + 0).toLocaleString("en");
  const folded = (title, text, tag = "div") => {
    if (text === null || text === undefined || text === "") return null;
    const body = tag === "div" ? el("div", { class: "text" }, text) : el("pre", {}, text);
    const node = el("details", {}, el("summary", {}, title), body);
    node.open = unfolded;
    return node;
  };
  const facts = (pairs) => {
    const said = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return el("dl", { class: "ids" }, said.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  };

  const NOT_CHOSEN = "pair_strategy", NOT_CHOSEN_WORDS = "not chosen by the pair strategy";
  const kindOf = (fate) => (fate === "kept" ? "kept" : fate === NOT_CHOSEN ? "other" : "dropped");
  const wordsOf = (fate) => (fate === NOT_CHOSEN ? NOT_CHOSEN_WORDS : fate);

  // A pair ------------------------------------------------------------------------------------

  const cased = (word) => word.charAt(0).toUpperCase() + word.slice(1);
  const nameOf = (pair, side) =>
    pair.decided ? side : side === "chosen" ? "one answer" : "the other answer";

  const answer = (pair, side) => {
    const it = pair[side];
    const text = el("div", { class: "text" }, it.parts.map(([text, differs]) => (differs ? el("mark", {}, text) : text)));
    const have = it.parts.reduce((sum, [text]) => sum + [...text].length, 0);
    if (it.characters > have) text.append(el("span", { class: "cut" }, ` … ${number(it.characters - have)} more characters`));
    if (!it.characters) text.append(el("span", { class: "cut" }, "(empty)"));
    const small = [
      it.tokens !== null && it.tokens !== undefined ? `${number(it.tokens)} tokens` : `${number(it.characters)} characters`,
      it.finish_reason === "length" ? "cut off" : null,
      it.score === null || it.score === undefined ? null : `score ${number(it.score)}`,
      it.origin,
      it.policy,
    ].filter(Boolean);
    return el("section", { class: `card ${pair.decided ? side : "even"}`, "aria-label": cased(nameOf(pair, side)) },
      el("h3", {}, cased(nameOf(pair, side))),
      folded("Thought", it.thought), text, el("p", { class: "small" }, small.join(" · ")));
  };

  const vote = (pair, it) => {
    const preferred = nameOf(pair, it.preferred === "chosen" || it.preferred === "rejected" ? it.preferred : "");
    const says = it.preferred === "chosen" || it.preferred === "rejected" ? preferred : it.preferred;
    const more = [
      it.first ? `saw ${nameOf(pair, it.first)} first` : "saw no order",
      it.p_chosen === null ? null : `p(${nameOf(pair, "chosen")}) ${number(it.p_chosen)}`,
      it.scores.some((score) => score !== null) ? `scores ${number(it.scores[0])} : ${number(it.scores[1])}` : null,
      it.completion_tokens ? `${number(it.prompt_tokens)} + ${number(it.completion_tokens)} tokens` : null,
      it.finish_reason && it.finish_reason !== "stop" && !it.choices ? `ended: ${it.finish_reason}` : null,
      it.cost ? `cost ${number(it.cost, 6)}` : null,
    ].filter(Boolean);
    return el("div", { class: "vote" },
      el("p", { class: "line" }, el("b", {}, it.labeler), " prefers ",
        el("b", { class: pair.decided ? `says-${it.preferred}` : "says" }, says), ` · ${more.join(" · ")}`),
      it.rationale ? el("div", { class: "text" }, it.rationale) : null,
      folded("Thought", it.thought), folded("Raw answer", it.raw, "pre"),
      folded("Log-probabilities of the verdicts", it.choices, "pre"));
  };

  const provenance = (pair) => {
    const of = (side) => {
      const it = pair[side];
      const drawn = it.seed === undefined ? null : `sample ${it.sample_index}, seed ${it.seed}${it.copies > 1 ? `, ${it.copies} copies` : ""}`;
      return [it.policy, it.origin, drawn, it.logprob === null || it.logprob === undefined ? null : `log-probability ${number(it.logprob, 2)}`, it.id].filter(Boolean).join(" · ");
    };
    const node = el("details", {}, el("summary", {}, "Where it came from"), facts([
      ["pair", pair.pair_id], ["prompt", pair.prompt_id], ["source", pair.source],
      [nameOf(pair, "chosen"), of("chosen")], [nameOf(pair, "rejected"), of("rejected")],
      ["labelers", (pair.labelers || []).join(", ")], ["in this page", pair.why && pair.why !== "all" ? pair.why : null],
    ]));
    node.open = unfolded;
    return el("section", { class: "card", "aria-label": "Where it came from" }, node);
  };

  const show = (pair) => {
    const consistent = pair.position_consistent;
    const said = [
      pair.round === null ? null : `round ${pair.round}`, pair.split,
      pair.margin === null ? null : `margin ${number(pair.margin)}`,
      pair.agreement === null ? null : `agreement ${number(pair.agreement)}`,
      pair.p_chosen === null ? null : `p(chosen) ${number(pair.p_chosen)}`,
      `length ratio ${number(pair.ratio, 2)}`,
      consistent === null || consistent === undefined ? null : consistent ? "same in both orders" : "differs by order",
      pair.compared ? null : "too long to mark differences",
    ].filter(Boolean);
    const prompt = el("section", { class: "card", "aria-label": "Prompt" },
      pair.turns.map((turn) => el("div", { class: "turn" }, el("h3", {}, turn.role), el("div", { class: "text" }, turn.content))),
      folded("Turns with their calls", pair.as_given, "pre"), folded("Tools", pair.tools, "pre"),
      folded("Reference answer", pair.reference));
    const votes = pair.votes.length
      ? el("section", { class: "card", "aria-label": "Votes" },
          el("h3", {}, `${pair.votes.length} vote${pair.votes.length === 1 ? "" : "s"}`), pair.votes.map((one) => vote(pair, one)))
      : null;
    main.replaceChildren(...[
      el("p", { class: "line" }, el("b", {}, kindOf(pair.fate) === "dropped" ? `Dropped: ${pair.fate}` : cased(wordsOf(pair.fate))), ` · ${said.join(" · ")}`),
      prompt, el("div", { class: marked ? "answers" : "answers plain" }, answer(pair, "chosen"), answer(pair, "rejected")),
      votes, provenance(pair)].filter(Boolean));
    main.scrollTop = 0;
  };
  const fault = (error) => main.replaceChildren(el("p", { class: "fault", role: "alert" }, error.message));

  // Which pairs -------------------------------------------------------------------------------

  const query = () => {
    const found = {};
    for (const [name, value] of new FormData(form)) if (value.trim() !== "") found[name] = value.trim();
    return found;
  };
  const texts = (pair) => [
    ...pair.turns.map((turn) => turn.content),
    ...["chosen", "rejected"].flatMap((side) => [pair[side].parts.map(([text]) => text).join(""), pair[side].thought]),
    ...pair.votes.map((one) => one.rationale),
  ];
  const holds = (pair, wanted) => {
    for (const name of ["round", "split"]) if (wanted[name] && String(pair[name]) !== wanted[name]) return false;
    if (wanted.fate === "dropped" ? kindOf(pair.fate) !== "dropped" : wanted.fate && pair.fate !== wanted.fate) return false;
    if (wanted.labeler && !(pair.labelers || []).includes(wanted.labeler)) return false;
    for (const name of ["margin", "agreement", "ratio", "length"]) {
      const [low, high] = [wanted[`${name}_min`], wanted[`${name}_max`]];
      if (low === undefined && high === undefined) continue;
      if (pair[name] === null || pair[name] < Number(low ?? -Infinity) || pair[name] > Number(high ?? Infinity)) return false;
    }
    if (!wanted.search) return true;
    const needle = wanted.search.toLowerCase();
    return texts(pair).some((text) => text && text.toLowerCase().includes(needle));
  };
  const inOrder = (pairs, wanted) => {
    const sign = wanted.descending ? -1 : 1, key = wanted.sort === "place" ? "id" : wanted.sort;
    if (wanted.sort === "drawn") return pairs; // as they stand in the page
    return [...pairs].sort((one, other) => {
      if (one[key] === null || other[key] === null) return (one[key] === null) - (other[key] === null);
      return sign * (one[key] - other[key]);
    });
  };
  const fetched = async (path, values) => {
    const answer = await fetch(`${path}?${new URLSearchParams(values)}`);
    const found = await answer.json();
    if (!answer.ok) throw new Error(found.error);
    return found;
  };
  const source = data.served
    ? {
        list: (wanted, from) => fetched("api/pairs", { ...wanted, from, count: PAGE }),
        pair: (row) => fetched("api/pair", { id: row.id }),
      }
    : {
        list: async (wanted, from) => {
          const found = inOrder(data.pairs.filter((pair) => holds(pair, wanted)), wanted);
          return { total: found.length, pairs: found.slice(from, from + PAGE) };
        },
        pair: async (row) => row,
      };

  // The list ----------------------------------------------------------------------------------

  const item = (pair, place) => {
    const figures = [pair.margin === null ? null : `margin ${number(pair.margin, 2)}`,
      `${number(pair.chosen_length)} : ${number(pair.rejected_length)}`].filter(Boolean);
    const button = el("button", { type: "button" },
      el("span", { class: "start" }, pair.start || "(no text)"),
      el("span", { class: "facts" }, figures.map((text) => el("span", {}, text)),
        el("span", { class: `fate ${kindOf(pair.fate)}` }, pair.fate === NOT_CHOSEN ? "not chosen" : pair.fate)));
    button.addEventListener("click", () => choose(place));
    return el("li", {}, button);
  };
  const choose = async (place) => {
    at = place;
    [...list.children].forEach((node, index) => {
      const button = node.firstChild;
      if (index === place) {
        button.setAttribute("aria-current", "true");
        button.scrollIntoView({ block: "nearest" });
      } else button.removeAttribute("aria-current");
    });
    const mine = ++asked;
    try {
      const pair = await source.pair(shown[place]);
      if (mine === asked) show(pair);
    } catch (error) {
      if (mine === asked) fault(error);
    }
  };
  const load = async (from, place = 0) => {
    const mine = ++asked;
    list.setAttribute("aria-busy", "true");
    if (data.served) byId("count").textContent = "Looking …";
    try {
      const found = await source.list(query(), from);
      if (mine !== asked) return;
      [shown, total, first] = [found.pairs, found.total, from];
    } catch (error) {
      if (mine === asked) fault(error);
      return;
    } finally {
      if (mine === asked) list.removeAttribute("aria-busy");
    }
    list.replaceChildren(...shown.map(item));
    list.scrollTop = 0;
    byId("count").textContent = total ? `${number(first + 1)}–${number(first + shown.length)} of ${number(total)} pair${total === 1 ? "" : "s"}` : "No pair is like that";
    byId("back").disabled = first === 0;
    byId("on").disabled = first + shown.length >= total;
    if (shown.length) await choose(place < 0 ? shown.length - 1 : place);
    else main.replaceChildren();
  };
  const step = (by) => {
    const place = at + by;
    if (place >= 0 && place < shown.length) choose(place);
    else if (by > 0 && first + shown.length < total) load(first + PAGE);
    else if (by < 0 && first > 0) load(Math.max(0, first - PAGE), -1);
  };

  // Beginning ---------------------------------------------------------------------------------

  for (const [name, any] of [["fate", "all"], ["labeler", "any"], ["round", "all"], ["split", "any"]]) {
    const select = form.elements[name], choices = data.choices[name];
    select.append(el("option", { value: "" }, any));
    if (name === "fate" && choices.some(([value]) => kindOf(value) === "dropped")) select.append(el("option", { value: "dropped" }, "dropped, for any reason"));
    for (const [value, count] of choices) select.append(el("option", { value }, `${name === "fate" ? wordsOf(value) : value} (${number(count)})`));
    if (!choices.length) select.disabled = true;
  }
  const why = Object.entries(data.why || {});
  byId("about").textContent = data.served
    ? `${number(data.total)} pairs, read from the disk as they are asked for`
    : why.length === 1 ? `all ${number(data.total)} pairs`
      : `${number(data.pairs.length)} of ${number(data.total)} pairs: ` +
        why.map(([name, count]) => `${number(count)} ${name === "drawn" ? `drawn by seed ${data.seed}` : `with ${name}`}`).join(", ");
  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => load(0), 200);
  });
  form.addEventListener("reset", () => setTimeout(() => load(0)));
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("back").addEventListener("click", () => load(Math.max(0, first - PAGE)));
  byId("on").addEventListener("click", () => load(first + PAGE));
  byId("help-button").addEventListener("click", () => help.showModal());
  help.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); help.close(); });

  const keys = {
    j: () => step(1), ArrowDown: () => step(1), k: () => step(-1), ArrowUp: () => step(-1),
    "/": () => form.elements.search.focus(), "?": () => help.showModal(),
    d: () => {
      marked = !marked;
      main.querySelector(".answers")?.classList.toggle("plain", !marked);
    },
    o: () => {
      unfolded = !unfolded;
      main.querySelectorAll("details").forEach((node) => { node.open = unfolded; });
    },
  };
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest("input, select, textarea");
    if (event.key === "Escape" && field) field.blur();
    if (field || help.open || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  load(0);
})();
