"use strict";
// Draws the page from its data: charts with Vega, tables by itself. Every text from the data goes into the page as text, never as markup.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const tables = {};
  const redraw = [];  // what follows the theme

  // ---- Small things ----

  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "on") for (const [event, call] of Object.entries(value)) node.addEventListener(event, call);
      else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  };
  const known = value => value !== null && value !== undefined;
  const number = value => {
    if (!known(value)) return "–";
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
    const size = Math.abs(value);
    return size >= 0.001 && size < 1e5 ? String(+value.toPrecision(5)) : value.toExponential(3);
  };
  const bytes = value => {
    let unit = 0;
    while (value >= 1024 && unit < 5) { value /= 1024; ++unit; }
    return (unit ? value.toPrecision(3) : value) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit];
  };
  const shown = (column, value) => column.type === "text" ? (value ?? "–") : column.type === "bytes" && known(value) ? bytes(value) : number(value);
  const distinct = values => [...new Set(values)];
  const median = values => {
    const sorted = values.slice().sort((a, b) => a - b), half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  };
  const choice = (label, options, call, chosen) => {
    const select = element("select", {on: {change: () => call(select.value)}});
    options.forEach(option => {
      const [value, text] = Array.isArray(option) ? option : [option, option];
      const node = element("option", {value}, text);
      if (value === chosen) node.selected = true;
      select.append(node);
    });
    const node = element("label", {}, label, select);
    node.select = select;
    return node;
  };

  // ---- Data: columns by key; texts that repeat are kept once ----

  for (const [name, table] of Object.entries(page.tables)) {
    for (const column of table.columns) {
      if (column.words) column.values = column.values.map(i => i === null ? null : column.words[i]);
      table[column.key] = column;
    }
    table.count = table.columns.length ? table.columns[0].values.length : 0;
    tables[name] = table;
  }
  const get = (table, key, row) => table[key] ? table[key].values[row] : undefined;

  // ---- Charts ----

  // By name, so that charts follow the page: from light to dark, and onto paper.
  const color = name => `var(--${name})`;
  const theme = () => ({
    background: color("back"),
    axis: {domainColor: color("line"), gridColor: color("grid"), tickColor: color("line"), labelColor: color("faint"), titleColor: color("faint"), titleFontWeight: "normal", labelLimit: 160},
    legend: {labelColor: color("text"), titleColor: color("faint"), titleFontWeight: "normal", labelLimit: 160},
    title: {color: color("text")},
  });
  const tip = element("div", {id: "tip", role: "tooltip", hidden: true});
  const show_tip = (handler, event, item, value) => {
    if (!known(value) || value === "") { tip.hidden = true; return; }
    tip.textContent = typeof value === "object" ? Object.entries(value).map(([key, text]) => `${key}: ${text}`).join("\n") : String(value);
    tip.hidden = false;
    const x = Math.min(event.pageX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = Math.max(0, x) + "px";
    tip.style.top = event.pageY + 16 + "px";
  };
  // A figure whose chart is made anew by draw(); values() gives what it shows as [header, rows] for those who cannot see it.
  const figure = (section, caption, make, values) => {
    const chart = element("div", {class: "chart"});
    const rows = element("div", {class: "scroll"});
    const details = element("details", {on: {toggle: () => { if (details.open) fill(); }}}, element("summary", {}, "the values as a table"), rows);
    const node = element("figure", {}, chart, element("figcaption", {}, caption), details);
    section.append(node);
    let view = null;
    const fill = () => {
      const [header, lines] = values();
      rows.replaceChildren(element("table", {},
        element("thead", {}, element("tr", {}, ...header.map((text, i) => element("th", {scope: "col", class: i ? undefined : "text"}, text)))),
        element("tbody", {}, ...lines.slice(0, 2000).map(line => element("tr", {}, ...line.map((text, i) => element("td", {class: i ? undefined : "text"}, typeof text === "number" ? number(text) : String(text ?? "–"))))))));
    };
    const draw = () => {
      const spec = make();
      if (view) view.finalize();
      chart.replaceChildren();
      if (!spec) { chart.append(element("p", {class: "faint"}, "nothing to draw")); return Promise.resolve(); }
      const full = {"$schema": "https://vega.github.io/schema/vega/v5.json", autosize: "pad", padding: 6, ...spec};
      view = new vega.View(vega.parse(full, theme(), {ast: true}), {expr: vega.expressionInterpreter, renderer: "svg", container: chart, hover: true, logLevel: vega.Warn});
      view.tooltip(show_tip);
      if (details.open) fill();
      return view.runAsync().then(() => { chart.dataset.drawn = "yes"; });
    };
    redraw.push(draw);
    node.draw = draw;
    node.listen = call => view && view.addEventListener("click", call);
    return node;
  };
  const width = () => Math.max(300, Math.min(980, document.body.clientWidth - 270));

  const models_of = table => table.model ? distinct(table.model.values) : [];
  const kinds_of = table => table.kind ? distinct(table.kind.values) : [];
  const in_model = (table, model) => {
    const rows = [];
    for (let row = 0; row < table.count; ++row) if (!table.model || table.model.values[row] === model) rows.push(row);
    return rows;
  };
  const layer_name = block => known(block) ? String(block) : "other";

  const draw_bytes = (section, data) => {
    const table = tables[data.table];
    let model = models_of(table)[0];
    let cells = [];
    const make = () => {
      const sums = new Map();
      for (const row of in_model(table, model)) {
        const key = layer_name(get(table, "block", row)) + "\n" + get(table, "kind", row);
        sums.set(key, (sums.get(key) || 0) + (get(table, "bytes", row) || 0));
      }
      cells = [...sums].map(([key, size]) => ({block: key.split("\n")[0], kind: key.split("\n")[1], size, text: bytes(size)}));
      const order = distinct(cells.map(cell => cell.block)).sort((a, b) => (a === "other") - (b === "other") || a - b);
      const rank = new Map(order.map((block, i) => [block, i]));
      cells.sort((a, b) => rank.get(a.block) - rank.get(b.block));
      const step = Math.min(24, 800 / order.length);
      return {
        description: "Bytes of each layer by kind of tensor, as stacked bars", width: width(), height: step * order.length,
        data: [{name: "cells", values: cells, transform: [{type: "stack", groupby: ["block"], field: "size"}]}],
        scales: [
          {name: "x", type: "linear", range: "width", domain: {data: "cells", field: "y1"}, nice: true},
          {name: "y", type: "band", range: "height", domain: order, padding: 0.12},
          {name: "color", type: "ordinal", range: {scheme: "tableau20"}, domain: {data: "cells", field: "kind"}},
        ],
        axes: [{orient: "bottom", scale: "x", title: "bytes", format: ".2s", grid: true, tickCount: 8}, {orient: "left", scale: "y", title: "layer", labelOverlap: true}],
        legends: [{fill: "color", title: "kind", symbolLimit: 24}],
        marks: [{type: "rect", from: {data: "cells"}, encode: {update: {
          x: {scale: "x", field: "y0"}, x2: {scale: "x", field: "y1"}, y: {scale: "y", field: "block"}, height: {scale: "y", band: 1}, fill: {scale: "color", field: "kind"},
          tooltip: {signal: "{layer: datum.block, kind: datum.kind, size: datum.text}"}}}}],
      };
    };
    const controls = element("div", {class: "controls"});
    if (models_of(table).length > 1) controls.append(choice("model", models_of(table), value => { model = value; fig.draw(); }, model));
    section.append(controls);
    const fig = figure(section, "Stored bytes of each layer.", make, () => [["layer", "kind", "bytes"], cells.map(cell => [cell.block, cell.kind, cell.size])]);
  };

  const draw_heat = (section, data) => {
    const table = tables[data.table];
    const metrics = data.metrics.filter(key => table[key] && table[key].values.some(known));
    if (!metrics.length) return;
    let model = models_of(table)[0], metric = metrics[0], cells = [];
    const make = () => {
      const groups = new Map();
      const column = table[metric];
      for (const row of in_model(table, model)) {
        const value = column.values[row];
        if (!known(value)) continue;
        const key = layer_name(get(table, "block", row)) + "\n" + get(table, "kind", row);
        groups.has(key) ? groups.get(key).push(value) : groups.set(key, [value]);
      }
      cells = [...groups].map(([key, values]) => {
        const value = median(values);
        return {block: key.split("\n")[0], kind: key.split("\n")[1], value, text: shown(column, value) + (values.length > 1 ? ` (median of ${values.length})` : "")};
      });
      if (!cells.length) return null;
      const blocks = distinct(cells.map(cell => cell.block)).sort((a, b) => (a === "other") - (b === "other") || a - b);
      const kinds = kinds_of(table).filter(kind => cells.some(cell => cell.kind === kind));
      const values = cells.map(cell => cell.value), least = Math.min(...values), most = Math.max(...values);
      const log = least > 0 && most / least > 100;
      const step = Math.min(24, 800 / blocks.length);
      return {
        description: `${column.title} of each layer and kind of tensor, as a map of colours`, width: Math.min(width(), 84 * kinds.length), height: step * blocks.length,
        data: [{name: "cells", values: cells}],
        scales: [
          {name: "x", type: "band", range: "width", domain: kinds, padding: 0.04},
          {name: "y", type: "band", range: "height", domain: blocks, padding: 0.04},
          {name: "color", type: log ? "log" : "linear", range: {scheme: "viridis"}, domain: least === most ? [least, least === 0 ? 1 : least * 1.001] : [least, most], zero: false},
        ],
        axes: [{orient: "top", scale: "x", labelAngle: kinds.length > 9 ? -35 : 0, labelAlign: kinds.length > 9 ? "left" : "center"}, {orient: "left", scale: "y", title: "layer", labelOverlap: true}],
        legends: [{fill: "color", type: "gradient", title: column.title, gradientLength: Math.min(180, Math.max(60, step * blocks.length))}],
        marks: [{type: "rect", from: {data: "cells"}, encode: {update: {
          x: {scale: "x", field: "kind"}, width: {scale: "x", band: 1}, y: {scale: "y", field: "block"}, height: {scale: "y", band: 1}, fill: {scale: "color", field: "value"}, cursor: {value: "pointer"},
          tooltip: {signal: "{layer: datum.block, kind: datum.kind, value: datum.text}"}}}}],
      };
    };
    const draw = () => fig.draw().then(() => fig.listen((event, item) => { if (item && item.datum && item.datum.kind) pick(data.table, item.datum.kind, item.datum.block); }));
    const controls = element("div", {class: "controls"}, choice("measure", metrics.map(key => [key, table[key].title]), value => { metric = value; draw(); }, metric));
    if (models_of(table).length > 1) controls.append(choice("model", models_of(table), value => { model = value; draw(); }, model));
    section.append(controls);
    const fig = figure(section, "Each cell is a layer and a kind of tensor; where there are several (experts) the median. A click shows them in the table below.", make,
      () => [["layer", "kind", table[metric].title], cells.map(cell => [cell.block, cell.kind, cell.value])]);
    redraw[redraw.length - 1] = draw;
  };

  // Which rows have this curve; selects of model and kind (and layer) that choose among them.
  const curve_controls = (table, curve, by_layer, call) => {
    const rows = [...Array(table.count).keys()].filter(row => table.curves[curve][row]);
    const state = {model: undefined, kind: undefined, row: undefined};
    const controls = element("div", {class: "controls"});
    const refill = () => {
      const models = table.model ? distinct(rows.map(row => table.model.values[row])) : [];
      if (models.length && !models.includes(state.model)) state.model = models[0];
      const mine = rows.filter(row => !table.model || table.model.values[row] === state.model);
      const kinds = distinct(mine.map(row => get(table, "kind", row)));
      // The kind that most layers have shows most.
      const count = kind => mine.reduce((sum, row) => sum + (get(table, "kind", row) === kind ? 1 + 9 * Boolean(table.curves.spectrum?.[row]) : 0), 0);
      if (!kinds.includes(state.kind)) state.kind = kinds.reduce((best, kind) => count(kind) > count(best) ? kind : best, kinds[0]);
      const last = mine.filter(row => get(table, "kind", row) === state.kind);
      if (!last.includes(state.row)) state.row = last[0];
      controls.replaceChildren();
      if (models.length > 1) controls.append(choice("model", models, value => { state.model = value; refill(); call(); }, state.model));
      controls.append(choice("kind", kinds, value => { state.kind = value; refill(); call(); }, state.kind));
      if (by_layer) controls.append(choice("tensor", last.map(row => [String(row), get(table, "name", row)]), value => { state.row = +value; call(); }, String(state.row)));
      state.rows = last;
    };
    refill();
    state.go = row => { state.model = get(table, "model", row); state.kind = get(table, "kind", row); state.row = row; refill(); call(); };
    return [controls, state];
  };

  const draw_spectra = (section, data) => {
    const table = tables[data.table];
    if (!table.curves || !table.curves.spectrum || !table.curves.spectrum.some(known)) return;
    let points = [];
    const [controls, state] = curve_controls(table, "spectrum", false, () => fig.draw());
    const make = () => {
      let rows = state.rows;
      const most = 40;
      if (rows.length > most) rows = Array.from({length: most}, (_, i) => rows[Math.round(i * (rows.length - 1) / (most - 1))]);
      points = [];
      for (const row of rows) {
        const [n, values] = table.curves.spectrum[row];
        const at = page.positions[n];
        values.forEach((value, i) => points.push({name: get(table, "name", row), layer: get(table, "block", row) ?? 0, row, i: at[i] + 1, s: Math.pow(10, value), text: number(Math.pow(10, value))}));
      }
      if (!points.length) return null;
      return {
        description: `Singular values of ${state.kind}, one line a tensor, by rank`, width: width(), height: 330,
        data: [{name: "points", values: points}],
        scales: [
          {name: "x", type: "log", range: "width", domain: {data: "points", field: "i"}, nice: false},
          {name: "y", type: "log", range: "height", domain: {data: "points", field: "s"}, zero: false, nice: true},
          {name: "color", type: "linear", range: {scheme: "viridis", extent: [0.25, 0.92]}, domain: {data: "points", field: "layer"}, zero: false},
        ],
        axes: [{orient: "bottom", scale: "x", title: "rank of the singular value", format: "d", labelOverlap: true, grid: true, gridOpacity: 0.4}, {orient: "left", scale: "y", title: "singular value", labelOverlap: true, grid: true, gridOpacity: 0.4, format: ".1e"}],
        legends: [{stroke: "color", fill: "color", type: "gradient", title: "layer"}],
        marks: [
          {type: "group", from: {facet: {name: "line", data: "points", groupby: "row"}}, marks: [{type: "line", from: {data: "line"}, encode: {update: {x: {scale: "x", field: "i"}, y: {scale: "y", field: "s"}, stroke: {scale: "color", field: "layer"}, strokeWidth: {value: 1.4}}}}]},
          {type: "symbol", from: {data: "points"}, encode: {update: {x: {scale: "x", field: "i"}, y: {scale: "y", field: "s"}, size: {value: 30}, fill: {scale: "color", field: "layer"}, opacity: {value: 0.01}, tooltip: {signal: "{tensor: datum.name, rank: datum.i, value: datum.text}"}}, hover: {opacity: {value: 1}}}},
        ],
      };
    };
    section.append(controls);
    const fig = figure(section, "Both axes are logarithmic: a straight tail is a power law, a shelf that ends at once is a random matrix, single values above it are learned directions.", make,
      () => [["tensor", "rank", "singular value"], points.map(point => [point.name, point.i, point.s])]);
    section.go = row => { if (table.curves.spectrum[row]) state.go(row); };
  };

  const draw_distribution = (section, data) => {
    const table = tables[data.table];
    if (!table.curves || !table.curves.histogram || !table.curves.histogram.some(known)) return;
    let bars = [];
    const [controls, state] = curve_controls(table, "histogram", true, () => fig.draw());
    const make = () => {
      const curve = table.curves.histogram[state.row];
      if (!curve) return null;
      const [begin, step, values] = curve;
      const total = values.reduce((sum, value) => sum + value, 0);
      bars = values.map((value, i) => ({low: begin + i * step, high: begin + (i + 1) * step, share: value / total / step}));
      const k = get(table, "weibull.k", state.row), lambda = get(table, "weibull.lambda", state.row);
      const fit = [];
      if (known(k) && known(lambda))
        for (let x = begin; x <= begin + values.length * step; x += step / 4) {
          const t = Math.pow(Math.pow(10, x) / lambda, k);
          fit.push({x, y: Math.LN10 * k * t * Math.exp(-t)});
        }
      return {
        description: `Distribution of the magnitudes in ${get(table, "name", state.row)}` + (fit.length ? " with the fitted Weibull curve" : ""), width: width(), height: 240,
        data: [{name: "bars", values: bars}, {name: "fit", values: fit}],
        scales: [
          {name: "x", type: "linear", range: "width", domain: [begin, begin + values.length * step], nice: false, zero: false},
          {name: "y", type: "linear", range: "height", domain: [0, Math.max(...bars.map(bar => bar.share), ...fit.map(point => point.y))], nice: true},
        ],
        axes: [{orient: "bottom", scale: "x", title: "log10 |w|"}, {orient: "left", scale: "y", title: "density"}],
        marks: [
          {type: "rect", from: {data: "bars"}, encode: {update: {x: {scale: "x", field: "low"}, x2: {scale: "x", field: "high"}, y: {scale: "y", field: "share"}, y2: {scale: "y", value: 0}, fill: {value: color("accent")}, fillOpacity: {value: 0.45},
            tooltip: {signal: "{'from': format(datum.low, '.3f'), to: format(datum.high, '.3f'), density: format(datum.share, '.4f')}"}}}},
          {type: "line", from: {data: "fit"}, encode: {update: {x: {scale: "x", field: "x"}, y: {scale: "y", field: "y"}, stroke: {value: color("warning")}, strokeWidth: {value: 2}}}},
        ],
      };
    };
    section.append(controls);
    const fig = figure(section, "Bars: the elements' magnitudes. Line: the Weibull distribution that was fitted to their middle (shape 1.205 is normal).", make,
      () => [["log10 |w| from", "to", "density"], bars.map(bar => [number(bar.low), bar.high, bar.share])]);
    section.go = row => { if (table.curves.histogram[row]) state.go(row); };
  };

  const draw_matrix = (section, data) => {
    const n = data.labels.length, columns = data.column_labels || data.labels;
    const cells = [];
    data.values.forEach((line, i) => line.forEach((value, j) => { if (known(value)) cells.push({i, j, a: data.labels[i], b: columns[j], value, text: number(value)}); }));
    if (!cells.length) return;
    const step = Math.max(8, Math.min(46, 620 / Math.max(n, columns.length)));
    const least = Math.min(...cells.map(cell => cell.value)), most = Math.max(...cells.filter(cell => cell.i !== cell.j || !data.symmetric).map(cell => cell.value), 1e-9);
    const make = () => ({
      description: data.title, width: step * columns.length, height: step * n,
      data: [{name: "cells", values: cells}],
      scales: [
        {name: "x", type: "band", range: "width", domain: [...columns.keys()], padding: 0.04},
        {name: "y", type: "band", range: "height", domain: [...data.labels.keys()], padding: 0.04},
        {name: "color", type: "linear", range: {scheme: "viridis"}, domain: [Math.min(0, least), most], clamp: true},
        {name: "row", type: "ordinal", domain: [...data.labels.keys()], range: data.labels},
        {name: "column", type: "ordinal", domain: [...columns.keys()], range: columns},
      ],
      axes: [
        {orient: "left", scale: "y", ticks: false, encode: {labels: {update: {text: {signal: "scale('row', datum.value)"}}}}},
        {orient: "bottom", scale: "x", ticks: false, labelAngle: -35, labelAlign: "right", encode: {labels: {update: {text: {signal: "scale('column', datum.value)"}}}}},
      ],
      legends: [{fill: "color", type: "gradient", title: data.measure || ""}],
      marks: [
        {type: "rect", from: {data: "cells"}, encode: {update: {x: {scale: "x", field: "j"}, width: {scale: "x", band: 1}, y: {scale: "y", field: "i"}, height: {scale: "y", band: 1}, fill: {scale: "color", field: "value"}, tooltip: {signal: "{'': datum.a + ' / ' + datum.b, value: datum.text}"}}}},
        ...(step > 30 ? [{type: "text", interactive: false, from: {data: "cells"}, encode: {update: {x: {scale: "x", field: "j", band: 0.5}, y: {scale: "y", field: "i", band: 0.5}, align: {value: "center"}, baseline: {value: "middle"}, fontSize: {value: 10},
          text: {signal: "format(datum.value, '.2f')"}, fill: {signal: `datum.value > ${0.62 * most} ? '#000' : '#fff'`}}}}] : []),
      ],
    });
    figure(section, data.text || "", make, () => [["", ...columns], data.values.map((line, i) => [data.labels[i], ...line])]);
  };

  const draw_lines = (section, data) => {
    const metrics = data.metrics;
    if (!metrics.length) return;
    let metric = metrics[0], points = [];
    const make = () => {
      points = [];
      metric.lines.forEach(line => line.values.forEach((value, i) => { if (known(value)) points.push({line: line.name, i, at: data.xs[i], value, text: number(value)}); }));
      if (!points.length) return null;
      const values = points.map(point => point.value), log = Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 100;
      return {
        description: `${metric.title} along ${data.x}`, width: width(), height: 280,
        data: [{name: "points", values: points}],
        scales: [
          {name: "x", type: "point", range: "width", domain: [...data.xs.keys()], padding: 0.3},
          {name: "at", type: "ordinal", domain: [...data.xs.keys()], range: data.xs.map(String)},
          {name: "y", type: log ? "log" : "linear", range: "height", domain: {data: "points", field: "value"}, nice: true, zero: false},
          {name: "color", type: "ordinal", range: {scheme: "tableau20"}, domain: {data: "points", field: "line"}},
        ],
        axes: [{orient: "bottom", scale: "x", title: data.x, labelOverlap: true, labelAngle: data.xs.some(x => String(x).length > 6) ? -20 : 0, labelAlign: data.xs.some(x => String(x).length > 6) ? "right" : "center", encode: {labels: {update: {text: {signal: "scale('at', datum.value)"}}}}}, {orient: "left", scale: "y", title: metric.title, grid: true, gridOpacity: 0.5}],
        legends: [{stroke: "color", title: "", symbolLimit: 24}],
        marks: [
          {type: "group", from: {facet: {name: "each", data: "points", groupby: "line"}}, marks: [{type: "line", from: {data: "each"}, encode: {update: {x: {scale: "x", field: "i"}, y: {scale: "y", field: "value"}, stroke: {scale: "color", field: "line"}, strokeWidth: {value: 1.6}}}}]},
          {type: "symbol", from: {data: "points"}, encode: {update: {x: {scale: "x", field: "i"}, y: {scale: "y", field: "value"}, fill: {scale: "color", field: "line"}, size: {value: 36}, tooltip: {signal: "{'': datum.line, at: datum.at, value: datum.text}"}}}},
        ],
      };
    };
    if (metrics.length > 1)
      section.append(element("div", {class: "controls"}, choice("measure", metrics.map((each, i) => [String(i), each.title]), value => { metric = metrics[+value]; fig.draw(); }, "0")));
    const fig = figure(section, data.text || "", make, () => [["", data.x, metric.title], points.map(point => [point.line, point.at, point.value])]);
  };

  // Lines and labelled points over two numbers.
  const draw_xy = (section, data) => {
    const points = [];
    for (const line of data.series) line.x.forEach((x, i) => { if (known(x) && known(line.y[i]) && (!data.log || line.y[i] > 0)) points.push({line: line.name, i, x, y: line.y[i]}); });
    if (!points.length) return;
    const names = distinct(points.map(point => point.line)), labels = data.labels || [];
    const fit = data.floor ? {domainMin: Math.max(...points.map(point => point.y)) * data.floor} : {};
    const make = () => ({
      description: data.title, width: Math.min(width(), data.width || 980), height: data.height || 280,
      data: [{name: "points", values: data.floor ? points.filter(point => point.y >= fit.domainMin) : points}, {name: "labels", values: labels}],
      scales: [
        {name: "x", type: "linear", range: "width", domain: {data: "points", field: "x"}, nice: true, zero: false},
        {name: "y", type: data.log ? "log" : "linear", range: "height", domain: {data: "points", field: "y"}, nice: true, zero: false, ...(data.plain_y ? {padding: 12} : {})},
        {name: "color", type: "ordinal", range: {scheme: "tableau10"}, domain: names},
      ],
      axes: [{orient: "bottom", scale: "x", title: data.x, labelOverlap: true, grid: true, gridOpacity: 0.5, format: ".3~g", tickCount: 10},
        ...(data.plain_y ? [] : [{orient: "left", scale: "y", title: data.y, labelOverlap: true, grid: true, gridOpacity: 0.5, format: data.log ? ".0e" : ".3~g"}])],
      legends: names.length > 1 && !data.one_color ? [{stroke: "color", title: "", symbolLimit: 24}] : [],
      marks: [
        {type: "group", from: {facet: {name: "each", data: "points", groupby: "line"}}, marks: [{type: "line", from: {data: "each"}, encode: {update: {x: {scale: "x", field: "x"}, y: {scale: "y", field: "y"}, strokeWidth: {value: data.points ? 0 : 1.6},
          stroke: data.one_color ? {value: color("accent")} : {scale: "color", field: "line"}}}}]},
        {type: "symbol", from: {data: "points"}, encode: {update: {x: {scale: "x", field: "x"}, y: {scale: "y", field: "y"}, size: {value: data.points ? 70 : 24}, opacity: {value: data.points ? 1 : 0.01},
          fill: data.one_color ? {value: color("accent")} : {scale: "color", field: "line"}, tooltip: {signal: "{'': datum.line, x: format(datum.x, '.4g'), y: format(datum.y, '.4g')}"}}, hover: {opacity: {value: 1}}}},
        {type: "text", interactive: false, from: {data: "labels"}, encode: {update: {x: {scale: "x", field: "x"}, y: {scale: "y", field: "y"}, dx: {value: data.plain_y ? -8 : 8}, dy: {value: data.plain_y ? 0 : -6}, align: {value: data.plain_y ? "right" : "left"},
          baseline: {value: data.plain_y ? "middle" : "bottom"}, text: {field: "text"}, fill: {value: color("text")}, fontSize: {value: 11}, limit: {value: 220}}}},
      ],
    });
    figure(section, data.text || "", make, () => [["", data.x, data.y || ""], points.map(point => [point.line, point.x, point.y])]);
  };

  // Values over a square, with lines of equal height.
  const draw_plane = (section, data) => {
    const n = data.positions.length, step = data.positions[1] - data.positions[0];
    const cells = [];
    data.values.forEach((line, i) => line.forEach((value, j) => { if (known(value)) cells.push({a: data.positions[i], b: data.positions[j], value, text: number(value)}); }));
    if (!cells.length) return;
    const values = cells.map(cell => cell.value), least = Math.min(...values), most = Math.max(...values);
    // Lines of equal height: in each square of four points, between the edges that a level crosses.
    const segments = [];
    for (let level = 1; level < 12; ++level) {
      const at = least + (most - least) * level / 12;
      for (let i = 0; i + 1 < n; ++i) for (let j = 0; j + 1 < n; ++j) {
        const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]], crossed = [];
        if (corners.some(([a, b]) => !known(data.values[a][b]))) continue;
        corners.forEach(([a, b], k) => {
          const [c, d] = corners[(k + 1) % 4], from = data.values[a][b], to = data.values[c][d];
          if ((from < at) === (to < at)) return;
          const t = (at - from) / (to - from);
          crossed.push([data.positions[a] + t * (data.positions[c] - data.positions[a]), data.positions[b] + t * (data.positions[d] - data.positions[b])]);
        });
        for (let k = 0; k + 1 < crossed.length; k += 2) segments.push({x: crossed[k][0], y: crossed[k][1], x2: crossed[k + 1][0], y2: crossed[k + 1][1]});
      }
    }
    const side = Math.min(420, width());
    const make = () => ({
      description: data.title, width: side, height: side,
      data: [{name: "cells", values: cells}, {name: "segments", values: segments}],
      scales: [
        {name: "x", type: "linear", range: "width", domain: [-1 - step / 2, 1 + step / 2], nice: false, zero: false},
        {name: "y", type: "linear", range: "height", domain: [-1 - step / 2, 1 + step / 2], nice: false, zero: false},
        {name: "color", type: "linear", range: {scheme: "viridis"}, domain: [least, most > least ? most : least + 1]},
      ],
      axes: [{orient: "bottom", scale: "x", title: "along the first direction", values: [-1, -0.5, 0, 0.5, 1]}, {orient: "left", scale: "y", title: "along the second", values: [-1, -0.5, 0, 0.5, 1]}],
      legends: [{fill: "color", type: "gradient", title: data.measure || "loss"}],
      marks: [
        {type: "rect", from: {data: "cells"}, encode: {update: {x: {scale: "x", signal: `datum.a - ${step / 2}`}, x2: {scale: "x", signal: `datum.a + ${step / 2}`}, y: {scale: "y", signal: `datum.b - ${step / 2}`}, y2: {scale: "y", signal: `datum.b + ${step / 2}`},
          fill: {scale: "color", field: "value"}, stroke: {scale: "color", field: "value"}, tooltip: {signal: "{first: format(datum.a, '.2f'), second: format(datum.b, '.2f'), value: datum.text}"}}}},
        {type: "rule", interactive: false, from: {data: "segments"}, encode: {update: {x: {scale: "x", field: "x"}, y: {scale: "y", field: "y"}, x2: {scale: "x", field: "x2"}, y2: {scale: "y", field: "y2"}, stroke: {value: "#fff"}, strokeOpacity: {value: 0.65}, strokeWidth: {value: 0.9}}}},
        {type: "symbol", interactive: false, encode: {update: {x: {scale: "x", value: 0}, y: {scale: "y", value: 0}, size: {value: 60}, shape: {value: "cross"}, fill: {value: "#fff"}, stroke: {value: "#000"}}}},
      ],
    });
    figure(section, data.text || "", make, () => [["", ...data.positions.map(number)], data.values.map((line, i) => [number(data.positions[i]), ...line])]);
  };

  // ---- Tables ----

  const pickers = {};
  const pick = (name, kind, block) => { if (pickers[name]) pickers[name](kind, block); };
  const follow = [];  // charts that show the row that was chosen

  const draw_table = (section, data) => {
    const table = tables[data.table];
    const state = {text: "", kind: "", model: "", block: "", column: "", op: ">", bar: "", sort: data.sort || "", down: data.down !== false, first: 0, size: 100};
    let order = [];
    const visible = new Set(table.columns.filter(column => column.shown !== false).map(column => column.key));
    const status = element("p", {class: "faint", role: "status", "aria-live": "polite"});
    const head = element("tr"), body = element("tbody");
    const node = element("table", {"aria-label": data.title}, element("thead", {}, head), body);
    const scroll = element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": data.title}, node);

    const filter = () => {
      const text = state.text.toLowerCase();
      order = [];
      const texts = table.columns.filter(column => column.type === "text");
      for (let row = 0; row < table.count; ++row) {
        if (state.kind && get(table, "kind", row) !== state.kind) continue;
        if (state.model && get(table, "model", row) !== state.model) continue;
        if (state.block !== "" && layer_name(get(table, "block", row)) !== state.block) continue;
        if (state.column && state.bar !== "") {
          const value = get(table, state.column, row);
          if (!known(value) || !(state.op === ">" ? value > +state.bar : value < +state.bar)) continue;
        }
        if (text && !texts.some(column => known(column.values[row]) && String(column.values[row]).toLowerCase().includes(text))) continue;
        order.push(row);
      }
      if (state.sort) {
        const column = table[state.sort], sign = state.down ? -1 : 1;
        const values = column.values;
        order.sort((a, b) => {
          const x = values[a], y = values[b];
          if (!known(x) || !known(y)) return known(x) ? -1 : known(y) ? 1 : a - b;  // what is unknown goes last
          return (column.type === "text" ? sign * (x < y ? -1 : x > y ? 1 : 0) : sign * (x - y)) || a - b;
        });
      }
      state.first = Math.min(state.first, Math.max(0, Math.floor((order.length - 1) / state.size) * state.size));
    };
    const columns = () => table.columns.filter(column => visible.has(column.key));
    const render_head = () => head.replaceChildren(...columns().map(column => {
      const sorted = state.sort === column.key;
      return element("th", {scope: "col", class: column.type === "text" ? "text" : undefined, title: column.hint, "aria-sort": sorted ? (state.down ? "descending" : "ascending") : "none"},
        element("button", {type: "button", on: {click: () => {
          state.down = state.sort === column.key ? !state.down : column.type !== "text";
          state.sort = column.key;
          state.first = 0;
          render();
          const again = [...head.querySelectorAll("button")][columns().indexOf(column)];
          if (again) again.focus();
        }}}, column.title.replace(/[._]/g, "$&\u200b") + (sorted ? (state.down ? " ▾" : " ▴") : "")));
    }));
    const render_body = (first, size) => {
      const shown_columns = columns();
      body.replaceChildren(...order.slice(first, first + size).map(row => element("tr", {}, ...shown_columns.map(column => {
        const text = shown(column, column.values[row]);
        const cell = element("td", {class: column.type === "text" ? "text" : undefined, title: column.type === "text" ? text : undefined});
        if (column.key === "name" && table.curves) cell.append(element("button", {type: "button", title: "show its spectrum and distribution", on: {click: () => follow.forEach(call => call(row))}}, text));
        else cell.append(text);
        return cell;
      }))));
    };
    const pager = element("div", {class: "controls pager"});
    const render_pager = () => {
      const last = Math.min(order.length, state.first + state.size);
      status.textContent = order.length ? `rows ${state.first + 1}–${last} of ${order.length}` + (order.length < table.count ? ` (of ${table.count} in all)` : "") : `no row of ${table.count} fits the filter`;
      pager.hidden = order.length <= state.size;
      pager.replaceChildren(
        element("button", {type: "button", disabled: state.first === 0, on: {click: () => { state.first -= state.size; render(); }}}, "previous"),
        element("button", {type: "button", disabled: last >= order.length, on: {click: () => { state.first += state.size; render(); }}}, "next"));
    };
    const render = () => { filter(); render_head(); render_body(state.first, state.size); render_pager(); scroll.scrollTop = 0; };
    const changed = key => value => { state[key] = value; state.first = 0; render(); };

    const search = element("input", {type: "search", placeholder: "part of a name", on: {input: () => changed("text")(search.value)}});
    const controls = element("div", {class: "controls"}, element("label", {}, "filter", search));
    let kind_choice, block_choice;
    if (models_of(table).length > 1) controls.append(choice("model", [["", "all"], ...models_of(table)], changed("model")));
    if (table.kind) controls.append(kind_choice = choice("kind", [["", "all"], ...kinds_of(table)], changed("kind")));
    if (table.block) {
      const blocks = distinct(table.block.values.map(layer_name)).sort((a, b) => (a === "other") - (b === "other") || a - b);
      controls.append(block_choice = choice("layer", [["", "all"], ...blocks], changed("block")));
    }
    const numbers = table.columns.filter(column => column.type !== "text");
    if (numbers.length > 1) {
      const bar = element("input", {type: "number", step: "any", size: 8, on: {input: () => changed("bar")(bar.value)}});
      controls.append(choice("only where", [["", "–"], ...numbers.map(column => [column.key, column.title])], changed("column")), choice("is", [[">", "above"], ["<", "below"]], changed("op")), element("label", {}, "bar", bar));
    }
    section.append(controls);
    if (table.columns.length > 8) {
      const boxes = element("div", {class: "columns"}, ...table.columns.map(column => {
        const box = element("input", {type: "checkbox", on: {change: () => { box.checked ? visible.add(column.key) : visible.delete(column.key); render(); }}});
        box.checked = visible.has(column.key);
        return element("label", {title: column.hint}, box, " " + column.title);
      }));
      section.append(element("details", {}, element("summary", {}, "columns"), boxes));
    }
    section.append(status, scroll, pager);
    render();
    pickers[data.table] = (kind, block) => {
      state.kind = kind;
      state.block = block;
      if (kind_choice) kind_choice.select.value = kind;
      if (block_choice) block_choice.select.value = block;
      state.first = 0;
      render();
      section.scrollIntoView({behavior: "smooth"});
    };
    window.addEventListener("beforeprint", () => render_body(0, 1000));
    window.addEventListener("afterprint", render);
  };

  // ---- The page ----

  const draws = {bytes: draw_bytes, heat: draw_heat, spectra: draw_spectra, distribution: draw_distribution, matrix: draw_matrix, lines: draw_lines, xy: draw_xy, plane: draw_plane, table: draw_table};
  const main = document.querySelector("main");
  const contents = document.querySelector("nav ul");
  page.sections.forEach((data, i) => {
    const section = element("section", {id: "s" + i, "aria-labelledby": "h" + i}, element("h2", {id: "h" + i}, data.title));
    if (data.text && !["matrix", "lines", "xy", "plane"].includes(data.type)) section.append(element("p", {class: "faint"}, data.text));
    const before = section.childNodes.length;
    draws[data.type](section, data);
    if (section.childNodes.length === before) return;  // there is nothing of it
    main.append(section);
    contents.append(element("li", {}, element("a", {href: "#s" + i}, data.title)));
    if (section.go) follow.push(row => { section.go(row); });
  });
  if (follow.length) follow.push(() => { const first = document.querySelector("figure"); const at = [...document.querySelectorAll("section")].find(section => section.go); (at || first).scrollIntoView({behavior: "smooth"}); });
  document.body.append(tip);
  const button = document.querySelector("button.theme");
  const draw_all = async () => { for (const draw of redraw) await draw(); document.documentElement.dataset.ready = "yes"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    draw_all();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw_all);
  draw_all();
})();
