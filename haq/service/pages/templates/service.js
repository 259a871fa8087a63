"use strict";
(() => {
  const csrf = document.querySelector("meta[name=csrf]")?.content;
  const ask = async (path, options = {}) => {
    const headers = { ...(csrf ? { "X-CSRF-Token": csrf } : {}), ...options.headers };
    const answer = await fetch(path, { ...options, headers });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.message);
    return content;
  };
  const json = (content) => ({ method: "POST", body: JSON.stringify(content), headers: { "Content-Type": "application/json" } });
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };

  document.getElementById("errors")?.focus();
  document.querySelectorAll("form[data-ask]").forEach((form) => {
    form.addEventListener("submit", (event) => { if (!confirm(form.dataset.ask)) event.preventDefault(); });
  });

  // Lists: drawn anew by the server now and then, while something goes on.
  const live = document.getElementById("live");
  if (live) {
    const refresh = async () => {
      if (document.hidden || live.dataset.live !== "true" || live.contains(document.activeElement)) return;
      const page = new DOMParser().parseFromString(await (await fetch(location.href)).text(), "text/html");
      const fresh = page.getElementById("live");
      if (!fresh) return;
      const chosen = new Set([...live.querySelectorAll("[name=run]:checked")].map((box) => box.value));
      live.replaceChildren(...document.adoptNode(fresh).childNodes);
      live.querySelectorAll("[name=run]").forEach((box) => { box.checked = chosen.has(box.value); });
      live.dataset.live = fresh.dataset.live;
    };
    setInterval(() => refresh().catch(() => {}), 3000);
  }

  // A new search: what goes together, what the budgets can be, and files to bring.
  const form = document.getElementById("new");
  if (form) {
    const fits = JSON.parse(form.dataset.fits);
    const offer = () => {
      const able = fits[form.model.value];
      if (!able) return;
      for (const option of form.data.options) option.disabled = !able.includes(option.value) && option.value in known_data;
      if (form.data.selectedOptions[0]?.disabled) {
        const other = [...form.data.options].find((option) => !option.disabled);
        if (other) form.data.value = other.value;
      }
    };
    const known_data = Object.fromEntries([...form.data.options].map((option) => [option.value, true]));
    const complain = (errors) => {
      form.querySelectorAll("[data-live-error]").forEach((old) => old.remove());
      for (const [name, sentence] of Object.entries(errors)) {
        if (document.getElementById(`${name}-error`)) continue;
        const field = document.getElementById(name)?.closest(".field, fieldset") ?? form.querySelector(".budget");
        field.append(element("p", sentence, { class: "error", "data-live-error": name, role: "status" }));
        const fold = field.closest("details");
        if (fold) fold.open = true;
      }
    };
    let latest = 0;
    const show = async () => {
      const mine = ++latest;
      try {
        const body = new URLSearchParams([...new FormData(form)].filter(([, value]) => typeof value === "string"));
        const { errors, ranges } = await ask("/new/check", { method: "POST", body });
        if (mine !== latest) return;
        form.querySelectorAll(".range").forEach((hint) => { hint.textContent = ranges[hint.dataset.row] ?? ""; });
        complain(errors);
      } catch { /* the server says it when the form is sent */ }
    };
    let waiting;
    form.addEventListener("change", (event) => {
      if (event.target.dataset.upload) return;
      if (event.target === form.model) offer();
      clearTimeout(waiting);
      waiting = setTimeout(show, 200);
    });
    form.querySelector("[value=ranges]").addEventListener("click", (event) => { event.preventDefault(); show(); });
    offer();
    show();

    const said = document.getElementById("upload-said");
    form.querySelectorAll("[data-upload]").forEach((input) => {
      input.addEventListener("change", async () => {
        const [file] = input.files;
        if (!file) return;
        const kind = input.dataset.upload;
        said.className = "";
        said.textContent = `Sending ${file.name} …`;
        try {
          const kept = await ask(`/v1/uploads/${kind}?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
          const select = form[kind];
          fits[form.model.value]?.push(`upload:${kept.id}`);
          select.append(element("option", `${kept.name} (uploaded)`, { value: `upload:${kept.id}` }));
          select.value = `upload:${kept.id}`;
          said.textContent = `${kept.name} is here and chosen.`;
          show();
        } catch (error) {
          said.className = "error";
          said.textContent = error.message;
        }
        input.value = ""; // so that the same file can be chosen again, once it is mended
      });
    });
  }

  // A run: events as they come, and the report's charts with them.
  const run = document.getElementById("run");
  if (run) {
    const place = `/v1/runs/${run.dataset.run}`;
    const at = (id) => document.getElementById(id);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    let themes, charts = {};
    const colored = (value, theme) => {
      if (typeof value === "string") return theme[value] ?? value;
      if (Array.isArray(value)) return value.map((item) => colored(item, theme));
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, colored(item, theme)]));
    };
    const draw = (key) => {
      const { figure } = charts[key];
      const { data, layout } = colored(figure, themes[dark.matches ? "dark" : "light"]);
      Plotly.react(at(`plot-${key}`), data, layout, { responsive: true, displaylogo: false });
    };
    const drawCharts = async () => {
      themes ??= await ask("/static/themes.json");
      const found = await ask(`${place}/charts`);
      charts = found.charts;
      for (const [key, chart] of Object.entries(charts)) {
        if (!at(`plot-${key}`)) {
          const figure = element("figure", "", { "aria-label": chart.title });
          figure.append(element("h3", chart.title), element("div", "", { id: `plot-${key}`, class: "plot", role: "img" }), element("figcaption", ""));
          at("charts").append(figure);
        }
        at(`plot-${key}`).setAttribute("aria-label", `${chart.title}. ${chart.sentence}`);
        at(`plot-${key}`).closest("figure").querySelector("figcaption").textContent = chart.sentence;
        draw(key);
      }
      return found.reasons;
    };
    const drawLayers = async (reasons) => {
      const layers = await ask(`${place}/layers`);
      if (!layers.length) return; // no episode is finished yet
      at("layers").tBodies[0].replaceChildren(...layers.map((layer) => {
        const row = element("tr", "");
        row.append(element("th", layer.name, { scope: "row" }), element("td", layer.kind, { "data-label": "Kind" }), element("td", layer.weight_bits, { class: "number", "data-label": "Weight bits" }), element("td", layer.act_bits, { class: "number", "data-label": "Act. bits" }), element("td", reasons[layer.name] ?? "", { class: "prose" }));
        return row;
      }));
    };
    // One look at a time, and one more if something came meanwhile.
    let looking = false, again = false;
    const look = async () => {
      again = true;
      if (looking) return;
      looking = true;
      while (again) {
        again = false;
        const started = Date.now();
        try { await drawLayers(await drawCharts()); } catch { /* busy: the next look will do */ }
        // The server shares its cores with the search: the longer a look takes, the rarer it is.
        const pause = Math.max(1500, 10 * (Date.now() - started));
        if (again) await new Promise((done) => setTimeout(done, pause));
      }
      looking = false;
      run.dataset.drawn = run.dataset.events;
    };
    dark.addEventListener("change", () => Object.keys(charts).forEach(draw));
    look();

    if (run.dataset.over === "false") {
      const known = Number(run.dataset.events);
      const source = new EventSource(`${place}/events?after=${known}`);
      // Where events do not come through, such as behind a proxy that holds them back: ask now and then.
      let heard = Date.now();
      const ask_state = async () => {
        if (document.hidden || Date.now() - heard < 20000) return;
        const now = await ask(place);
        at("episodes").textContent = at("bar").value = now.episodes;
        if (now.state !== "running" && now.state !== "queued" && now.state !== "paused") location.reload();
        else at("state").replaceChildren(element("span", now.state, { class: `state ${now.state}` }));
      };
      setInterval(() => ask_state().catch(() => {}), 5000);
      for (const kind of ["progress", "trial", "state"]) source.addEventListener(kind, () => { heard = Date.now(); });
      const lines = async () => {
        if (document.hidden) return;
        const log = at("log"), end = log.scrollTop + log.clientHeight >= log.scrollHeight - 5;
        const text = await (await fetch(`${place}/log?lines=200`)).text();
        if (text) log.textContent = text;
        if (end) log.scrollTop = log.scrollHeight;
      };
      setInterval(() => lines().catch(() => {}), 4000);
      const time = (seconds) => (seconds === null ? "" : seconds < 90 ? `about ${Math.ceil(seconds)} s left` : `about ${Math.ceil(seconds / 60)} min left`);
      source.addEventListener("progress", (event) => {
        const stand = JSON.parse(event.data);
        at("stage").textContent = stand.stage ? `${stand.stage} ${stand.done} of ${stand.total}` : "–";
        at("left").textContent = [stand.note, time(stand.seconds_left)].filter(Boolean).join("; ");
        at("episodes").textContent = at("bar").value = stand.episodes;
        at("best").textContent = stand.best;
      });
      source.addEventListener("trial", (event) => {
        const trial = JSON.parse(event.data);
        run.dataset.events = event.lastEventId;
        at("episodes").textContent = at("bar").value = trial.episode + 1;
        look();
      });
      source.addEventListener("state", (event) => {
        const { state, message } = JSON.parse(event.data);
        run.dataset.events = event.lastEventId;
        at("state").replaceChildren(element("span", state, { class: `state ${state}` }));
        at("message").textContent = message ?? "";
        at("said").textContent = `The run is ${state}.`;
      });
      // What can be done and taken away now is the server's to say.
      source.addEventListener("end", () => { source.close(); location.reload(); });
    }
  }
})();
