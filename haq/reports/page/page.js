"use strict";
(() => {
  const { figures, numbers, themes, reload_s: reloadSeconds } = JSON.parse(document.getElementById("content").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paper = matchMedia("print");
  const PRINT_WIDTH = 660; // pixels: what fits on A4 and on Letter
  const PRINT_HEIGHT = 780;
  const PRINT_SHARE = 0.58; // of the height on a screen: two charts fit a page
  const CONFIG = {
    responsive: true, displaylogo: false,
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"], ["toImage"]],
  };
  let printing = false;

  const colored = (value, theme) => {
    if (typeof value === "string") return theme[value] ?? value;
    if (Array.isArray(value)) return value.map((item) => colored(item, theme));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, colored(item, theme)]));
  };

  const draw = (plot) => {
    if (plot.closest("figure").hidden) return; // it has no width yet
    const theme = themes[dark.matches && !printing ? "dark" : "light"];
    const { data, layout } = colored(figures[plot.dataset.figure], theme);
    if (printing) {
      layout.width = PRINT_WIDTH;
      layout.height = Math.min(PRINT_SHARE * layout.height, PRINT_HEIGHT);
      layout.font = { ...layout.font, size: 9 };
    }
    Plotly.react(plot, data, layout, CONFIG);
    // The label of the chart says what it shows; its buttons stay.
    document.querySelectorAll(".plot svg, #js-plotly-tester").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
  };
  const drawAll = () => document.querySelectorAll(".plot").forEach(draw);

  const print = (on) => {
    if (printing === on) return;
    printing = on;
    document.documentElement.toggleAttribute("data-theme", on);
    if (on) document.documentElement.dataset.theme = "light";
    drawAll();
  };

  document.querySelectorAll(".choice select").forEach((select) => {
    select.addEventListener("change", () => {
      select.closest(".choice").querySelectorAll("figure").forEach((figure) => {
        figure.hidden = figure.id !== `chart-${select.value}`;
        draw(figure.querySelector(".plot"));
      });
    });
  });

  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const compare = (a, b) => {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return typeof a === "number" ? -1 : 1; // what has no number comes last
  };
  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const descending = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((one, other) => (descending ? -1 : 1) * compare(key(one, column), key(other, column)));
        table.tBodies[0].append(...rows);
      });
    });
  };
  document.querySelectorAll("table").forEach(sortable);

  // The numbers of a chart: a table is made when it is first asked for.
  const made = (tag, attributes, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const cell = (value, first) => {
    const isNumber = typeof value === "number";
    const text = value === null ? "–" : isNumber ? value.toLocaleString("en", { maximumSignificantDigits: 4 }) : value;
    const attributes = isNumber ? { class: "number", "data-value": value } : value === null ? { class: "number" } : {};
    return made(first ? "th" : "td", first ? { scope: "row", ...attributes } : attributes, text);
  };
  const tableOf = ({ caption, columns, rows }) => {
    const head = columns.map((name) => made("th", { scope: "col", "aria-sort": "none" }, made("button", { type: "button" }, name)));
    const body = rows.map((row) => made("tr", {}, ...row.map((value, at) => cell(value, at === 0))));
    const table = made("table", {}, made("caption", {}, caption), made("thead", {}, made("tr", {}, ...head)), made("tbody", {}, ...body));
    sortable(table);
    return made("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, table);
  };
  document.querySelectorAll("details[data-numbers]").forEach((details) => {
    details.addEventListener("toggle", () => {
      if (!details.querySelector("table")) details.append(tableOf(numbers[details.dataset.numbers]));
    });
  });

  dark.addEventListener("change", drawAll);
  paper.addEventListener("change", () => print(paper.matches));
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  drawAll();
  if (reloadSeconds) setTimeout(() => location.reload(), 1000 * reloadSeconds);
})();
