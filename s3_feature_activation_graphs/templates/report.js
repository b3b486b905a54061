"use strict";
(() => {
  const FIRST = 5;
  const MORE = 20;
  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  // Tables: sorted by the data-value of a column's cells; cells without a value stay last.

  const cellValue = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  };

  const compare = (column, direction) => (one, other) => {
    const [a, b] = [cellValue(one, column), cellValue(other, column)];
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === typeof b) return direction * (typeof a === "number" ? a - b : a.localeCompare(b));
    return typeof a === "number" ? -1 : 1;
  };

  const makeSortable = (table, show = (rows) => table.tBodies[0].append(...rows)) => {
    const rows = [...table.tBodies[0].rows];
    let sorted = rows;
    for (const button of table.querySelectorAll("thead .sort")) {
      const heading = button.parentElement;
      button.addEventListener("click", () => {
        const first = heading.cellIndex < 2 || !heading.classList.contains("n") ? "ascending" : "descending";
        const opposite = { ascending: "descending", descending: "ascending" };
        const order = opposite[heading.getAttribute("aria-sort")] ?? first;
        for (const other of heading.parentElement.cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", order);
        sorted = [...rows].sort(compare(heading.cellIndex, order === "ascending" ? 1 : -1));
        show(sorted);
      });
    }
    return () => show(sorted);
  };

  // The ranked table: filters, and families folded under their best row that the filters leave.

  const openFamilies = new Set();

  const showRanked = (table, form) => (rows) => {
    const wanted = Object.fromEntries(new FormData(form));
    const matches = (row) =>
      ["layer", "average_l0", "strongest_label"].every((name) => !wanted[name] || row.dataset[name] === wanted[name]) &&
      (!wanted.passing || row.dataset.passing === "1") &&
      row.dataset.find.toLowerCase().includes(wanted.find.trim().toLowerCase());
    const found = rows.filter(matches);
    const families = new Map();
    for (const row of found) {
      const name = row.dataset.family || row;
      families.set(name, [...(families.get(name) ?? []), row]);
    }
    const shown = [];
    const heads = new Set();
    for (const row of found) {
      const family = wanted.fold ? families.get(row.dataset.family || row) : [row];
      const head = family.find((member) => member.dataset.best === "1") ?? family[0];
      if (row !== head) continue;
      heads.add(head);
      const members = family.filter((member) => member !== head);
      markFamily(head, members.length, form);
      shown.push(head, ...(openFamilies.has(head.dataset.family) ? members : []));
    }
    for (const row of rows) {
      row.hidden = !shown.includes(row);
      row.classList.toggle("member", !heads.has(row));
      if (!heads.has(row)) row.querySelector(".unfold")?.remove();
    }
    table.tBodies[0].append(...shown, ...rows.filter((row) => row.hidden));
    form.elements.count.value = `${found.length} of ${rows.length} features`
      + (found.length > shown.length ? `, ${shown.length} rows` : "");
  };

  const markFamily = (head, nMembers, form) => {
    head.querySelector(".unfold")?.remove();
    if (!nMembers) return;
    const open = openFamilies.has(head.dataset.family);
    const button = element("button", { type: "button", className: "unfold", textContent: open ? "fold" : `+${nMembers}` });
    button.setAttribute("aria-expanded", open);
    button.setAttribute("aria-label", `${open ? "fold" : "unfold"} ${nMembers} more of family ${head.dataset.family}`);
    button.addEventListener("click", () => {
      openFamilies[open ? "delete" : "add"](head.dataset.family);
      form.dispatchEvent(new Event("input"));
      head.querySelector(".unfold").focus();
    });
    head.querySelector(".family").append(button);
  };

  // Heat maps.

  const source = document.getElementById("heat-maps");
  const data = source && JSON.parse(source.textContent);
  const tip = document.getElementById("tip");
  const starts = [0];
  for (const length of data?.lengths ?? []) starts.push(starts.at(-1) + length);
  const tokensOf = (sentence) => data.tokens.slice(starts[sentence], starts[sentence + 1]).map((id) => data.vocabulary[id]);
  const searched = data?.texts.map((text, sentence) => (text ?? tokensOf(sentence).join("")).toLowerCase());

  const unpacked = new Map();
  const activationsOf = (feature) => {
    if (unpacked.has(feature)) return unpacked.get(feature);
    const values = new Float32Array(starts.at(-1));
    let at = 0;
    feature.gaps.forEach((gap, index) => {
      at += gap;
      values[at] = feature.values[index];
    });
    unpacked.set(feature, values);
    return values;
  };

  const sinksOfLayer = new Map();
  const sinksOf = (feature) => {
    if (!sinksOfLayer.has(feature.reads)) {
      let at = 0;
      sinksOfLayer.set(feature.reads, new Set(data.sinks[feature.reads].map((gap) => (at += gap))));
    }
    return sinksOfLayer.get(feature.reads);
  };

  const visible = (token) =>
    token === "" ? "\u2205" : token.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(
      /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (sign) => `\\u${sign.codePointAt(0).toString(16).padStart(4, "0")}`);
  const rounded = (value) => (value === 0 ? "0" : value >= 100 ? value.toFixed(0) : value.toPrecision(3));

  const drawSentence = (feature, values, sentence) => {
    const of = values.subarray(starts[sentence], starts[sentence + 1]);
    const peak = of.reduce((best, value, index) => (value > of[best] ? index : best), 0);
    const text = element("span", { className: "text", dir: "auto" });
    const sinks = sinksOf(feature);
    tokensOf(sentence).forEach((token, position, all) => {
      // An empty token is a piece of the character that a later one shows.
      const whole = token || all.slice(position).find(Boolean) || "";
      const name = token || !whole ? `\u201c${visible(token)}\u201d` : `piece of \u201c${visible(whole.trimStart())}\u201d`;
      const span = element("span", { textContent: token || !whole ? visible(token) : "\u00b7", tabIndex: -1 });
      const isSink = sinks.has(starts[sentence] + position);
      if (isSink) span.className = "sink";
      span.dataset.tip = isSink
        ? `${name}  attention sink, left out\ntoken ${position + 1} of ${of.length}`
        : `${name}  ${rounded(of[position])}\ntoken ${position + 1} of ${of.length}`
        + (of[position] > 0 ? `, ${Math.round((100 * of[position]) / feature.max)}% of the feature's largest` : "");
      if (of[position] > 0) {
        span.className = position === peak ? "hot peak" : "hot";
        span.style.setProperty("--v", (of[position] / feature.max).toFixed(3));
      }
      text.append(span);
    });
    const meta = element("span", { className: "meta" },
      element("b", { textContent: rounded(feature.pooled[sentence]) }),
      data.held_out[sentence] ? element("span", { className: "held", textContent: "held-out" }) : "train");
    meta.title = `sentence ${data.index[sentence]}`;
    const spelled = data.texts[sentence];
    if (spelled === null) return element("li", {}, meta, text);
    const plain = element("span", { className: "plain", textContent: spelled, dir: "auto" });
    return element("li", {}, meta, element("div", {}, plain, text));
  };

  const makeReachable = (list) => {
    if (list.querySelector('[tabindex="0"]')) return;
    const first = list.querySelector(".peak") ?? list.querySelector(".text span");
    if (first) first.tabIndex = 0;
  };

  const drawList = (title, feature, values, sentences, name) => {
    const list = element("ul", { className: "sentences" });
    list.setAttribute("aria-label", name);
    const more = element("button", { type: "button", className: "more" });
    let shown = 0;
    const grow = (by) => {
      list.append(...sentences.slice(shown, shown + by).map((sentence) => drawSentence(feature, values, sentence)));
      shown = Math.min(shown + by, sentences.length);
      more.hidden = shown === sentences.length;
      more.textContent = `${Math.min(MORE, sentences.length - shown)} more of ${sentences.length}`;
      makeReachable(list);
    };
    more.addEventListener("click", () => grow(MORE));
    grow(FIRST);
    const nothing = element("p", { className: "none", textContent: title === "top" ? "It fires in none." : "None." });
    return element("div", {}, element("h5", { textContent: title }), sentences.length ? list : nothing, more);
  };

  const wantedSentences = (form) => {
    const { split, label, text } = Object.fromEntries(new FormData(form));
    const words = text.trim().toLowerCase();
    const matches = searched.map((of, sentence) =>
      (split === "" || data.held_out[sentence] === Number(split)) && of.includes(words));
    const labels = Object.keys(data.random).filter((of) => !label || of === label).sort().reverse();
    return labels.map((of) => ({
      label: of,
      all: data.labels.flatMap((other, sentence) => (String(other) === of && matches[sentence] ? [sentence] : [])),
      random: data.random[of].filter((sentence) => matches[sentence]),
    }));
  };

  const drawFeature = (box, wanted) => {
    const feature = data.features[Number(box.dataset.feature)];
    const values = activationsOf(feature);
    const scale = element("p", { className: "scale" }, "0", element("i"), String(feature.max));
    box.replaceChildren(scale);
    for (const { label, all, random } of wanted) {
      const firing = all.filter((sentence) => feature.pooled[sentence] > 0);
      const top = firing.sort((a, b) => feature.pooled[b] - feature.pooled[a]).slice(0, data.top_limit ?? undefined);
      box.append(element("section", { className: "by-label" },
        element("h4", { textContent: `label ${label}` }),
        drawList("top", feature, values, top, `label ${label}, top sentences`),
        drawList("random", feature, values, random, `label ${label}, random sentences`)));
    }
  };

  // The value of a token: by pointer, by touch (which focuses it), and by keyboard.

  let told = null;
  const showTip = (token) => {
    told = token;
    tip.textContent = token.dataset.tip;
    tip.hidden = false;
    const place = token.getClientRects()[0];
    const left = Math.min(place.left, innerWidth - tip.offsetWidth - 8);
    const above = place.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 4 ? above : place.bottom + 6}px`;
  };
  const hideTip = () => {
    told = null;
    tip.hidden = true;
  };
  const tokenOf = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);

  const move = (event) => {
    const token = tokenOf(event);
    if (event.key === "Escape") hideTip();
    if (!token) return;
    const sentence = token.parentElement;
    const item = sentence.closest("li");
    const place = [...sentence.children].indexOf(token);
    const inItem = (other) => other?.querySelector(".text").children;
    const target = {
      ArrowLeft: () => token.previousElementSibling,
      ArrowRight: () => token.nextElementSibling,
      Home: () => sentence.firstElementChild,
      End: () => sentence.lastElementChild,
      ArrowUp: () => inItem(item.previousElementSibling)?.[Math.min(place, inItem(item.previousElementSibling).length - 1)],
      ArrowDown: () => inItem(item.nextElementSibling)?.[Math.min(place, inItem(item.nextElementSibling).length - 1)],
    }[event.key]?.();
    if (!target) return;
    event.preventDefault();
    for (const other of item.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  };

  // Links to a feature: its section, or its row where it has none.

  const goToFeature = () => {
    for (const other of document.querySelectorAll(".found")) other.classList.remove("found");
    const target = location.hash.startsWith("#feature-") && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.hidden) {
      document.querySelector('form[data-for="ranked"]').reset();
      openFamilies.add(target.dataset.family);
      refreshRanked();
    }
    target.classList.add("found");
    target.scrollIntoView();
    target.focus({ preventScroll: true });
  };

  let refreshRanked = () => {};
  for (const table of document.querySelectorAll("table.sortable")) {
    const form = document.querySelector(`form[data-for="${table.id}"]`);
    if (!form) makeSortable(table);
    else {
      refreshRanked = makeSortable(table, showRanked(table, form));
      form.addEventListener("input", refreshRanked);
      form.addEventListener("submit", (event) => event.preventDefault());
      form.hidden = false;
      refreshRanked();
    }
  }
  if (data) {
    const form = document.querySelector('form[data-for="heat"]');
    const drawAll = () => {
      const wanted = wantedSentences(form);
      for (const box of document.querySelectorAll(".heat")) drawFeature(box, wanted);
    };
    form.addEventListener("input", drawAll);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    drawAll();
    document.addEventListener("pointerover", (event) => (tokenOf(event) ? showTip(tokenOf(event)) : hideTip()));
    document.addEventListener("focusin", (event) => (tokenOf(event) ? showTip(tokenOf(event)) : hideTip()));
    document.addEventListener("keydown", move);
    document.addEventListener("scroll", () => told && showTip(told), { passive: true });
    addEventListener("hashchange", goToFeature);
    goToFeature();
  }
})();
