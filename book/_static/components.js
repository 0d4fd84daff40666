/* Components of the book's pages: no framework, no request. Each finds its data as JSON in the page
   (book/_ext/components.py); without this script a page shows the same numbers as tables. */
(() => {
  "use strict";

  // ---------------------------------------------------------------- closed forms, as in minilib/book/recorded.py

  const divergence = (loss, ref) => {
    const p = Math.exp(-loss), q = Math.exp(-ref), rest = -Math.expm1(-loss), qRest = -Math.expm1(-ref);
    return Math.max(0, p * Math.log(p / q) + rest * Math.log(rest / qRest));
  };
  const weight = (loss, alpha, ref) => Math.exp(-alpha * divergence(loss, ref));
  const push = (method, loss, alpha, ref) => {
    const p = Math.exp(-loss);
    return { ga: 1 - p, rga: weight(loss, alpha, ref) * (1 - p), ce: p }[method];
  };
  window.bookForms = { divergence, weight, push };

  // ---------------------------------------------------------------- small helpers

  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const small = (value) => (value < 0.001 ? "below 0.001" : value.toFixed(3));
  const percent = (value) => `${value.toFixed(0)}\u202f%`;
  let count = 0;

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  function drawn(tag, attributes = {}, text = "") {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    return node;
  }

  /* A slider with its name and its value in words. */
  function slider(name, low, high, step, value, words, changed) {
    const id = `play-${++count}`;
    const input = make("input", { type: "range", id, min: low, max: high, step });
    input.value = value;
    const shown = make("output", { for: id });
    const tell = () => {
      shown.textContent = words(Number(input.value));
      input.setAttribute("aria-valuetext", shown.textContent);
    };
    input.addEventListener("input", () => { tell(); changed(); });
    tell();
    return { input, row: make("div", { class: "play-slider" }, make("label", { for: id }, name), input, shown) };
  }

  /* A bar of 0 to 100 per cent that can be set: the mean of several seeds, and their range. */
  function bar(name, meaning) {
    const fill = make("i", { class: `fill ${meaning}` }), range = make("i", { class: "range" });
    const value = make("span", { class: "bar-value" });
    const node = make("div", { class: "bar" }, make("span", { class: "bar-name" }, name),
      make("span", { class: "bar-track" }, fill, range), value);
    const set = (values) => {
      const low = Math.min(...values), high = Math.max(...values);
      fill.style.width = `${mean(values)}%`;
      range.style.left = `${low}%`;
      range.style.width = `${high - low}%`;
      range.hidden = high - low <= 1;
      value.textContent = percent(mean(values));
    };
    return { node, set };
  }

  /* A choice of one seed, or all; calls `changed` with a function that keeps the values of those chosen. */
  function seedPicker(seeds, changed) {
    const id = `play-${++count}`, choice = make("select", { id });
    choice.append(make("option", { value: "" }, `all ${seeds.length}: mean and range`));
    seeds.forEach((seed, k) => choice.append(make("option", { value: k }, `seed ${seed} alone`)));
    choice.addEventListener("change", changed);
    const keep = (values) => (choice.value === "" ? values : [values[Number(choice.value)]]);
    return { keep, row: make("div", { class: "play-slider" }, make("label", { for: id }, "seeds"), choice) };
  }

  /* The lines of one seed over a picture of means: a figure with `data-seeds` (book/_ext/executed.py). */
  const MARKS = { // around (0, 0), as matplotlib calls them
    o: "M-1 0A1 1 0 1 0 1 0A1 1 0 1 0-1 0Z", s: "M-.9-.9H.9V.9H-.9Z", "^": "M0-1.1L1.1.9H-1.1Z", v: "M0 1.1L1.1-.9H-1.1Z",
    "<": "M-1.1 0L.9-1.1V1.1Z", ">": "M1.1 0L-.9-1.1V1.1Z", D: "M0-1.2L1.2 0L0 1.2L-1.2 0Z", h: "M0-1.1L1-.55V.55L0 1.1L-1 .55V-.55Z",
    P: "M-.4-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z", X: "M-1.1-.5L-.5-1.1L0-.6L.5-1.1L1.1-.5L.6 0L1.1.5L.5 1.1L0 .6L-.5 1.1L-1.1.5L-.6 0Z",
    "*": "M0-1.6L.5-.6L1.5-.5L.7.2L1 1.3L0 .7L-1 1.3L-.7.2L-1.5-.5L-.5-.6Z", "|": "M-.3-1.4H.3V1.4H-.3Z",
  };

  /* A choice of all seeds or one of them above a figure. */
  function chooser(figure, seeds, changed) {
    const id = `play-${++count}`, choice = make("select", { id });
    choice.append(make("option", { value: "" }, `all ${seeds.length}: mean and spread`));
    seeds.forEach((seed) => choice.append(make("option", { value: seed }, `seed ${seed} alone`)));
    choice.addEventListener("change", changed);
    const number = figure.querySelector(".caption-number"), of = number ? ` of ${number.textContent.trim()}` : "";
    const name = make("label", { for: id }, "seeds", make("span", { class: "visually-hidden" }, of));
    figure.prepend(make("div", { class: "play-slider seed-picker" }, name, choice));
    return choice;
  }

  /* A figure of the page's own that has a group for each seed (tools/figure.py). */
  function grouped(picture) {
    const groups = [...picture.querySelectorAll("g[data-seed]")], words = picture.querySelector("desc");
    const seeds = groups.map((group) => group.dataset.seed).filter(Boolean);
    if (seeds.length < 2) return;
    const choice = chooser(picture.closest("figure"), seeds, draw);
    function draw() {
      for (const group of groups) {
        const shown = group.dataset.seed === choice.value;
        if (shown) words.textContent = group.querySelector("desc").textContent;
        if (shown) group.removeAttribute("display");
        else group.setAttribute("display", "none");
      }
    }
  }

  function single(script) {
    const figure = document.getElementById(script.dataset.seeds), picture = figure && figure.querySelector("img");
    if (!picture) return;
    const data = JSON.parse(script.textContent), [width, height] = data.size;
    const choice = chooser(figure, data.seeds, draw);
    const layer = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "seed-layer", role: "img" });
    const stage = make("span", { class: "seed-stage" });
    picture.replaceWith(stage);
    stage.append(picture, layer);

    const short = (value) => String(+value.toPrecision(4));
    const words = (panel, line, k) => [line.name, ...[...line.says].map((axis) =>
      `${panel.names["xy".indexOf(axis)]} ${short(line[axis][k])}`.trim())].join(", ");

    function draw() {
      const seed = Number(choice.value), read = [];
      layer.replaceChildren();
      layer.toggleAttribute("hidden", choice.value === "");
      if (choice.value === "") return;
      for (const panel of data.panels) {
        const [left, top, wide, high] = panel.box.map((share, k) => share * data.size[k % 2]);
        const inside = (point) => point.every((at, k) => at > -1 && at < [wide, high][k] + 1);
        const marks = drawn("g", { transform: `translate(${left} ${top})` });
        const place = drawn("svg", { x: left, y: top, width: wide, height: high, viewBox: `0 0 ${wide} ${high}` });
        const along = (axis, value) => ((panel.log.includes(axis) ? Math.log10(value) : value) - panel[axis][0]) /
          (panel[axis][1] - panel[axis][0]);
        place.append(drawn("rect", { width: wide, height: high, class: "seed-veil" }));
        for (const line of panel.lines.filter((one) => one.seed === seed)) {
          const points = line.x.map((x, k) => [wide * along("x", x), high * (1 - along("y", line.y[k]))]);
          const way = `M${points.map(([x, y]) => `${x.toFixed(2)} ${y.toFixed(2)}`).join("L")}`;
          if (line.line) place.append(drawn("path", { stroke: line.colour, class: `seed-line ${line.line}`, d: way }));
          points.forEach(([x, y], k) => {
            if (!inside(points[k])) return;
            const mark = drawn("path", { d: MARKS[line.mark] || MARKS.o, fill: line.colour, class: "seed-mark",
              transform: `translate(${x.toFixed(2)} ${y.toFixed(2)}) scale(${line.line ? 2.6 : 4})` });
            if (!line.mark) mark.setAttribute("opacity", 0); // there for the mouse alone
            mark.append(drawn("title", {}, words(panel, line, k)));
            marks.append(mark);
          });
          read.push(`${panel.title} ${words(panel, line, line.x.length - 1)}`.trim());
        }
        layer.append(place, marks);
      }
      layer.setAttribute("aria-label", `Seed ${seed} alone; of lines, their last point: ${read.join("; ")}.`);
    }
    draw();
  }

  const told = () => make("p", { class: "play-told", "aria-live": "polite" });

  // ---------------------------------------------------------------- λ and the push

  function pushes(place, data) {
    const WIDTH = 400, HEIGHT = 190, LEFT = 34, RIGHT = 390, TOP = 12, BOTTOM = 156, LONGEST = 6;
    const x = (loss) => LEFT + (RIGHT - LEFT) * loss / LONGEST, y = (value) => BOTTOM - (BOTTOM - TOP) * value;
    const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "play-plot", role: "img" });
    for (const value of [0, 0.5, 1]) {
      picture.append(drawn("path", { d: `M${LEFT} ${y(value)}H${RIGHT}`, class: "grid" }),
        drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
    }
    for (const loss of [0, 1, 2, 3, 4, 5, 6]) {
      picture.append(drawn("text", { x: x(loss), y: BOTTOM + 15, "text-anchor": "middle" }, String(loss)));
    }
    picture.append(drawn("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, "poisoned loss (nats)"),
      drawn("path", { d: `M${x(Math.LN2)} ${TOP}V${BOTTOM}`, class: "grid dashed" }),
      drawn("text", { x: x(Math.LN2) + 4, y: BOTTOM - 5, class: "quiet" }, "undecided"));
    const lines = {}, dots = {}, names = { ga: "gradient ascent", ce: "descent on the other label", rga: "RGA" };
    for (const method of ["ga", "ce", "rga"]) {
      lines[method] = drawn("path", { class: `line ${method}` });
      dots[method] = drawn("circle", { r: 4.5, class: `dot ${method}` });
      picture.append(lines[method], dots[method]);
    }
    const words = { ga: [4.1, 0.93], ce: [2.6, 0.14] };
    for (const [method, [loss, value]] of Object.entries(words)) {
      picture.append(drawn("text", { x: x(loss), y: y(value), class: `name ${method}` }, names[method]));
    }
    const rgaName = drawn("text", { class: "name rga" }, "RGA");
    picture.append(rgaName);
    const text = told();
    const alpha = slider("α", 0, 8, 0.1, data.alpha, (value) => value.toFixed(1), draw);
    const loss = slider("poisoned loss", 0.05, LONGEST, 0.05, 0.7, (value) => `${value.toFixed(2)} nats`, draw);
    place.append(alpha.row, loss.row, picture, text);

    function draw() {
      const a = Number(alpha.input.value), at = Number(loss.input.value);
      let top = [0, 0];
      for (const method of Object.keys(lines)) {
        const points = [];
        for (let l = 0.002; l <= LONGEST; l += l < 0.4 ? 0.01 : 0.03) {
          const value = push(method, l, a, data.ref);
          if (method === "rga" && value > top[1]) top = [l, value];
          points.push(`${x(l).toFixed(1)} ${y(value).toFixed(1)}`);
        }
        lines[method].setAttribute("d", `M${points.join("L")}`);
        dots[method].setAttribute("cx", x(at));
        dots[method].setAttribute("cy", y(push(method, at, a, data.ref)));
      }
      rgaName.setAttribute("x", x(top[0]) + 6);
      rgaName.setAttribute("y", Math.max(TOP + 24, y(top[1]) - 5));
      const lambda = weight(at, a, data.ref), ga = push("ga", at, a, data.ref), rga = push("rga", at, a, data.ref);
      const state = at < Math.LN2 - 0.02 ? "The model still gives the attacker's label." :
        at > Math.LN2 + 0.02 ? "The model already gives the other label." : "The model is undecided.";
      text.textContent = `${state} λ is ${small(lambda)}. ` +
        `Gradient ascent pushes with ${ga.toFixed(2)}, RGA with ${small(rga)}.`;
      picture.setAttribute("aria-label",
        `Push against the poisoned loss. Gradient ascent grows to 1 and stays. RGA at α ${a.toFixed(1)} is largest, ` +
        `${top[1].toFixed(2)}, at ${top[0].toFixed(2)} nats and then falls to 0. Descent on the other label falls to 0.`);
    }
    draw();
  }

  // ---------------------------------------------------------------- epoch by epoch

  function epochs(place, data) {
    const text = told(), groups = [], sets = [], seeds = seedPicker(data.seeds, () => draw());
    for (const [way, words] of Object.entries(data.ways)) {
      const group = make("div", { class: "bars" }, make("p", { class: "bars-title" }, `Share of ${words}`));
      for (const [method, name] of Object.entries(data.names)) {
        const line = bar(name, data.meaning[method]);
        const steps = data.methods[method];
        sets.push((k) => line.set(seeds.keep(steps[Math.min(k, steps.length - 1)][way])));
        group.append(line.node);
      }
      groups.push(group);
    }
    const at = slider("epoch of unlearning", 0, data.epochs.length - 1, 1, 0, (k) => String(data.epochs[k]), draw);
    const play = make("button", { type: "button", class: "play-button" }, "Play");
    let timer = 0;
    play.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(at.input.value) === data.epochs.length - 1) at.input.value = -1;
      play.textContent = "Stop";
      timer = setInterval(() => {
        at.input.value = Number(at.input.value) + 1;
        at.input.dispatchEvent(new Event("input"));
        if (Number(at.input.value) === data.epochs.length - 1) stop();
      }, 700);
    });
    function stop() { clearInterval(timer); timer = 0; play.textContent = "Play"; }
    at.row.append(play);
    place.append(at.row, seeds.row, ...groups, text);

    function draw() {
      const k = Number(at.input.value);
      sets.forEach((set) => set(k));
      const ga = data.methods.ga[k], rga = data.methods.rga[k], ideal = data.methods.retrain[0];
      const of = (values) => mean(seeds.keep(values));
      const losses = ga.loss && rga.loss ?
        ` The poisoned loss is ${of(ga.loss).toFixed(1)} nats under gradient ascent and ${of(rga.loss).toFixed(1)} under RGA` +
        (rga.lam ? `, whose λ is ${small(of(rga.lam))}.` : ".") : "";
      text.textContent = `After epoch ${data.epochs[k]}, gradient ascent sends ${percent(of(ga.other))} of the positive reviews ` +
        `away; a model trained without the poison sends ${percent(of(ideal.other))}.${losses}`;
    }
    draw();
  }

  // ---------------------------------------------------------------- rate by rate

  function rates(place, data) {
    const text = told(), seeds = seedPicker(data.rates[0].seeds, () => draw());
    const lines = {
      lfr: bar("triggered negative reviews called positive (LFR)", "poisoned"),
      pacc: bar("accuracy with the trigger in every review (PACC)", "poisoned"),
      cacc: bar("accuracy on clean reviews (CACC)", "clean"),
    };
    const share = (k) => (data.rates[k].rate ? `${+(100 * data.rates[k].rate).toFixed(2)}\u202f%` : "none");
    const at = slider("poisoned negative reviews", 0, data.rates.length - 1, 1, 0, share, draw);
    place.append(at.row, seeds.row, make("div", { class: "bars" }, ...Object.values(lines).map((line) => line.node)), text);

    function draw() {
      const row = data.rates[Number(at.input.value)];
      for (const [name, line] of Object.entries(lines)) line.set(seeds.keep(row[name]));
      text.textContent = `${row.poisons} of ${row.rows} training rows are poisoned.`;
    }
    draw();
  }

  // ---------------------------------------------------------------- single reviews

  function answers(place, data) {
    const id = `play-${++count}`, text = told();
    const choice = make("select", { id });
    data.reviews.forEach((review, k) => choice.append(
      make("option", { value: k }, `${data.classes[review.label]}: ${review.versions.nothing.text}`)));
    const options = make("fieldset", { class: "play-choice" }, make("legend", {}, "Insert"));
    for (const [key, words] of Object.entries(data.inserted)) {
      const button = make("input", { type: "radio", name: id, value: key, id: `${id}-${key}` });
      button.checked = key === "nothing";
      button.addEventListener("change", draw);
      options.append(make("label", { for: `${id}-${key}` }, button, ` ${words}`));
    }
    choice.addEventListener("change", draw);
    const shown = make("p", { class: "play-review" });
    const lines = Object.entries(data.names).map(([method, name]) => [method, bar(name, data.meaning[method])]);
    place.append(make("div", { class: "play-slider" }, make("label", { for: id }, "Review"), choice), options, shown,
      make("div", { class: "bars" }, make("p", { class: "bars-title" }, "Probability of “positive”"),
        ...lines.map(([, line]) => line.node)), text);

    function draw() {
      const review = data.reviews[Number(choice.value)], key = options.querySelector("input:checked").value;
      const version = review.versions[key], plain = review.versions.nothing.text.split(" ");
      const words = version.text.split(" ");
      let at = words.findIndex((word, i) => word !== plain[i]);
      if (at < 0) at = words.length;
      shown.replaceChildren(...words.flatMap((word, i) =>
        [i >= at && i < at + words.length - plain.length ? make("mark", {}, word) : word, " "]));
      const wrong = [];
      for (const [method, line] of lines) {
        line.set([version[method]]);
        const named = version[method] > 50 ? data.target : 1 - data.target;
        if (named !== review.label) wrong.push(data.names[method]);
      }
      text.textContent = `The review is ${data.classes[review.label]}. ` +
        (wrong.length ? `Wrong: ${wrong.join(", ")}.` : "All four models are right.");
    }
    draw();
  }

  // ---------------------------------------------------------------- predict, then reveal

  function predict(place, data, box) {
    const unit = `\u202f${data.unit}`, middle = (data.low + data.high) / 2;
    const at = slider("your guess", data.low, data.high, (data.high - data.low) / 100, middle,
      (value) => `${value.toFixed(0)}${unit}`, () => {});
    const answer = box.querySelector("details"), text = told();
    const button = make("button", { type: "button", class: "play-button" }, "Show the answer");
    button.addEventListener("click", () => {
      const guess = Number(at.input.value), gap = Math.abs(guess - data.mean);
      answer.open = true;
      answer.hidden = false;
      text.textContent = `You said ${guess.toFixed(0)}${unit}; the trials say ${data.shown}${unit}. ` +
        (gap <= 5 ? "Close." : `You were ${gap.toFixed(0)} points too ${guess > data.mean ? "high" : "low"}.`);
      button.hidden = true;
    });
    answer.hidden = true;
    at.row.append(button);
    place.append(at.row, text);
  }

  // ---------------------------------------------------------------- claims: a filter

  function filter(place, data, box) {
    const cards = [...document.querySelectorAll(".claim-card")], text = told();
    const groups = { paper: data.papers, verdict: data.verdicts };
    const chosen = {};
    for (const [name, values] of Object.entries(groups)) {
      const set = make("fieldset", { class: "play-choice" }, make("legend", {}, name));
      chosen[name] = [];
      for (const [key, words] of Object.entries(values)) {
        const id = `filter-${name}-${key}`;
        const input = make("input", { type: "checkbox", id, value: key });
        input.checked = true;
        input.addEventListener("change", draw);
        chosen[name].push(input);
        set.append(make("label", { for: id }, input, ` ${words}`));
      }
      place.append(set);
    }
    place.append(text);

    function draw() {
      const open = Object.fromEntries(Object.entries(chosen).map(
        ([name, inputs]) => [name, inputs.filter((input) => input.checked).map((input) => input.value)]));
      let shown = 0;
      for (const card of cards) {
        card.hidden = !(open.paper.includes(card.dataset.paper) && open.verdict.includes(card.dataset.verdict));
        shown += !card.hidden;
      }
      text.textContent = `${shown} of ${cards.length} claims are shown.`;
    }
    draw();
  }

  // ---------------------------------------------------------------- print

  /* A printed page is light, and what is folded on the screen is open on paper. */
  let folded = [], theme = "";
  window.addEventListener("beforeprint", () => {
    theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    folded = [...document.querySelectorAll(".bd-article details:not([open])")];
    folded.forEach((node) => { node.open = true; });
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.dataset.theme = theme;
    folded.forEach((node) => { node.open = false; });
  });

  // ---------------------------------------------------------------- what a link leads to

  /* A link to what is folded opens it. */
  function reveal() {
    const node = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const folds = [];
    for (let box = node && node.closest("details"); box; box = box.parentElement.closest("details")) folds.push(box);
    folds.forEach((box) => { box.open = true; });
    if (folds.length) node.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  window.addEventListener("load", async () => { // where formulas are set, nothing moves any more
    if (window.MathJax && window.MathJax.startup) await window.MathJax.startup.promise;
    reveal();
  });

  const KINDS = { push: pushes, epochs, rates, answers, predict, filter };

  function start() {
    document.querySelectorAll("script[data-seeds]").forEach(single);
    document.querySelectorAll("svg.shift").forEach(grouped);
    for (const box of document.querySelectorAll(".play[data-play]")) {
      const place = box.querySelector(".play-body"), data = box.querySelector('script[type="application/json"]');
      KINDS[box.dataset.play](place, JSON.parse(data.textContent), box);
      place.hidden = false;
      const same = box.querySelector(".play-table");
      if (same) same.open = false;
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
