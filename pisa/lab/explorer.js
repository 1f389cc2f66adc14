// The explorer in the browser: it draws the state and changes it. nbs/lab/80_explorer.ipynb says what the state is.

const ALL = '1111' // which of x1, y1, x2, y2 move along: the box as a whole
const PLACE = ['left', 'top', 'width', 'height'] // the sliders of the chosen box
const slider = (name, range = '') =>
  `<label>${name}<input type="range" name="${name}" ${range}><output></output></label>`
const HTML = `<style>.pisa-explorer {
  line-height: 1.4;
  .parts {display: flex; flex-wrap: wrap; gap: 6px 14px} .picture {padding: 12px 22px} .buttons {padding: 4px 55px}
  label {display: grid; grid-template-columns: 55px 1fr 48px; align-items: center; width: 440px; height: 28px}
  output {text-align: right} .message {color: #c62828} .shades {padding: 0 50px; margin: 0 4px}
  svg {display: block; overflow: visible; user-select: none; touch-action: none; fill: none; margin-bottom: 12px}
  text {font: bold 13px sans-serif; text-anchor: middle; dominant-baseline: central; pointer-events: none}
  [data-sides="1111"] {cursor: grab} [data-sides="1100"], [data-sides="0011"] {cursor: nwse-resize}
  [data-sides="0110"], [data-sides="1001"] {cursor: nesw-resize}
  table {border-collapse: collapse; font-size: 13px; white-space: nowrap; min-width: 440px}
  tr {cursor: pointer} .chosen {background: rgba(70, 130, 240, .22)} td span {opacity: .55}
  th, td {padding: 1px 6px; text-align: left} th {border-bottom: 1px solid}
}</style>
<div class="parts"><label>scene <select name="shown"></select></label>
  <label style="width: 200px">image <input name="image" type="number" min="0"></label></div>
<div class="message"></div>
<div class="parts scene">
  <div class="picture"><svg></svg>weight 0<span class="shades"></span>1 · on each box: its letter and its IoU-HLR<br>
    Drag a box or a corner with the mouse, or move a slider (arrow keys work too).</div>
  <div><label>box <select name="box"></select></label>${PLACE.map(name => slider(name)).join('')}
    <div class="buttons"><button name="add">+ add a box</button> <button name="remove">− remove it</button>
    <button name="reset">↺ reset</button></div>
    ${slider('gamma', 'min="0" max="4" step=".05"')}${slider('beta', 'min="0" max=".95" step=".05"')}
    <table></table></div>
</div>`

const letterOf = i => String.fromCharCode(97 + i % 26) + (Math.floor(i / 26) || '') // a to z, a1 to z1, ...
const sizes = ([x1, y1, x2, y2]) => [x1, y1, x2 - x1, y2 - y1] // as PLACE
const escaped = words => new Option(words).innerHTML

function set(model, changes) {
  for (const [name, value] of Object.entries(changes)) model.set(name, value)
  model.save_changes()
}

// The box after some of its sides were moved. It does not leave the frame, and no side becomes shorter than `least`.
function moved(box, sides, by, { frame, least }) {
  const out = [...box]
  for (const [low, high] of [[0, 2], [1, 3]]) {
    const from = +sides[low] ? frame[low] - box[low] : box[low] + least - box[high]
    const to = +sides[high] ? frame[high] - box[high] : box[high] - least - box[low]
    for (const k of [low, high]) out[k] += sides[k] * Math.max(from, Math.min(by[low], to))
  }
  return out
}

function move(model, letter, box, sides, by) {
  set(model, { boxes: { ...model.get('boxes'), [letter]: moved(box, sides, by, model.get('view')) }, chosen: letter })
}

function drag(model, press) {
  const { box: letter, sides } = press.target.dataset, box = model.get('boxes')[letter], { scale } = model.get('view')
  if (!letter) return
  const by = e => [(e.clientX - press.clientX) / scale, (e.clientY - press.clientY) / scale]
  const follow = e => move(model, letter, box, sides, by(e))
  press.preventDefault()
  follow(press)
  window.addEventListener('pointermove', follow) // what is pressed is drawn anew at every step, so the window listens
  window.addEventListener('pointerup', () => window.removeEventListener('pointermove', follow), { once: true })
}

function slide(model, k, value) {
  const chosen = model.get('chosen'), box = model.get('boxes')[chosen], by = [0, 0]
  by[k % 2] = value - sizes(box)[k]
  move(model, chosen, box, k < 2 ? ALL : ['0010', '0001'][k - 2], by)
}

// A new box lies a little beside the chosen one. Its letter is neither another's nor one of the boxes at first.
function add(model) {
  const view = model.get('view'), boxes = model.get('boxes'), [x1, y1, x2, y2] = view.frame
  const box = boxes[model.get('chosen')] ?? [(2*x1 + x2) / 3, (2*y1 + y2) / 3, (x1 + 2*x2) / 3, (y1 + 2*y2) / 3]
  let i = view.first
  while (letterOf(i) in boxes) i++
  move(model, letterOf(i), box, ALL, sizes(box).slice(2).map(d => d / 10))
}

function remove(model) {
  const { [model.get('chosen')]: gone, ...boxes } = model.get('boxes'), left = Object.keys(boxes)
  const i = Object.keys(model.get('boxes')).indexOf(model.get('chosen'))
  set(model, { boxes, chosen: left[Math.min(i, left.length - 1)] ?? null })
}

const rect = ([x1, y1, x2, y2], style) =>
  `<rect x="${x1}" y="${y1}" width="${x2 - x1}" height="${y2 - y1}" ${style}/>`
const text = ([x, y], words, style) => `<text x="${x}" y="${y}" ${style}>${escaped(words)}</text>`
const around = (x, y, w, h) => [x - w / 2, y - h / 2, x + w / 2, y + h / 2]

// For each label a place on its box's outline: where it covers least of the names of the objects and the labels before
function places(labels, taken) {
  const ends = [[0, 0], [1, 0], [0, 1], [1, 1]], along = [.3, .7].flatMap(f => [[f, 0], [f, 1], [0, f], [1, f]])
  const shared = (a, b, k) => Math.max(Math.min(a[k + 2], b[k + 2]) - Math.max(a[k], b[k]), 0)
  return labels.map(({ box: [x1, y1, x2, y2], width }) => {
    const spots = [...ends, ...along].map(([fx, fy]) => around(x1 + fx * (x2 - x1), y1 + fy * (y2 - y1), width, 19))
    const covered = spots.map(s => taken.reduce((sum, t) => sum + shared(s, t, 0) * shared(s, t, 1), 0))
    taken.push(spots[covered.indexOf(Math.min(...covered))])
    return taken.at(-1)
  })
}

// From below: the objects, the boxes, the names of the objects, the labels of the boxes, and what is taken hold of, not
// seen: insides, lines, corners. The smaller box lies above the larger, and the chosen one above all.
function picture(view, boxes, chosen, table) {
  const px = box => box.map((v, k) => (v - view.frame[k % 2]) * view.scale), layers = ['', '', '', '', '', '', '']
  const middle = ([x1, y1, x2, y2]) => [(x1 + x2) / 2, (y1 + y2) / 2], names = []
  for (const { box, name, color } of view.objects) {
    const fill = view.image ? 'none' : color
    layers[0] += rect(px(box), `fill="${fill}" fill-opacity=".25" stroke="${color}" stroke-width="6"`)
    layers[2] += text(middle(px(box)), name, 'fill="#333" stroke="white" stroke-width="3" paint-order="stroke"')
    names.push(around(...middle(px(box)), 8 * name.length, 18))
  }
  const drawn = Object.keys(boxes).map(letter => {
    const row = table[letter] ?? { color: 'gray', thick: 1.5, words: letter } // not measured yet
    return { ...row, letter, box: px(boxes[letter]), width: 8 * row.words.length + 8 }
  })
  places(drawn, names).forEach((label, i) => { drawn[i].label = label })
  const area = ({ letter }) => letter == chosen ? 0 : sizes(boxes[letter])[2] * sizes(boxes[letter])[3]
  for (const { letter, box, label, color, ink, thick, words } of drawn.sort((a, b) => area(b) - area(a))) {
    const mark = letter == chosen, taken = sides => `data-box="${letter}" data-sides="${sides}"`
    layers[1] += rect(box, `stroke="white" stroke-width="${thick + 2}" stroke-opacity=".8"`) +
      rect(box, `stroke="${color}" stroke-width="${thick}"`)
    const edge = mark ? 'stroke="black" stroke-width="2"' : 'stroke="white"'
    layers[3] += rect(label, `class="label" rx="4" fill="${color}" ${edge}`)
    layers[3] += text(middle(label), words, `fill="${ink}"`)
    layers[4] += rect(box, `${taken(ALL)} pointer-events="all"`)
    layers[5] += rect(box, `${taken(ALL)} pointer-events="stroke" stroke-width="14"`)
    for (const sides of ['1100', '0110', '0011', '1001']) {
      const corner = [box[+sides[2] ? 2 : 0], box[+sides[3] ? 3 : 1]]
      if (mark) layers[1] += rect(around(...corner, 9, 9), 'fill="white" stroke="black" stroke-width="1.5"')
      layers[6] += rect(around(...corner, 14, 14), `${taken(sides)} pointer-events="all"`)
    }
  }
  return layers.join('')
}

// The table; a cell that differs from what it was at first has both values
function rows(columns, boxes, chosen, table) {
  const cell = ([was, now]) => was == now ? escaped(now) : `<span>${escaped(was)} →</span> <b>${escaped(now)}</b>`
  const row = ([letter, { color, cells }]) => `<tr data-box="${letter}" class="${letter == chosen ? 'chosen' : ''}">
    <td style="border-left: 8px solid ${color}"><b>${letter}</b></td>
    ${cells.map(c => `<td>${cell(c)}</td>`).join('')}</tr>`
  return `<tr>${columns.map(name => `<th>${name}</th>`).join('')}</tr>` +
    Object.entries(table).filter(([letter]) => letter in boxes).map(row).join('')
}

function choices(select, names, value) {
  const old = [...select.options].map(o => o.value)
  if (old.join() != names.join()) select.replaceChildren(...names.map(n => new Option(n)))
  select.value = value
}

function draw(model, el, part) {
  const [view, boxes, chosen, table] = ['view', 'boxes', 'chosen', 'table'].map(name => model.get(name))
  const numbered = model.get('numbered'), shown = model.get('shown')
  choices(part('shown'), Object.keys(numbered), shown)
  Object.assign(part('image'), { value: model.get('image'), disabled: !numbered[shown] })
  el.querySelector('.message').textContent = model.get('message')
  el.querySelector('.scene').style.display = view.frame ? '' : 'none'
  if (!view.frame) return // no scene yet
  choices(part('box'), Object.keys(boxes), chosen)
  for (const name of [...PLACE, 'box', 'remove']) part(name).disabled = !boxes[chosen]
  const place = sizes(boxes[chosen] ?? view.frame), [x1, y1, w, h] = sizes(view.frame), { least } = view
  const ranges = [[x1, x1 + w], [y1, y1 + h], [least, w], [least, h]]
  PLACE.forEach((name, k) => {
    Object.assign(part(name), { min: ranges[k][0], max: ranges[k][1], step: least, value: place[k] })
  })
  for (const name of ['gamma', 'beta']) part(name).value = model.get(name)
  for (const name of [...PLACE, 'gamma', 'beta']) part(name).nextSibling.value = part(name).valueAsNumber.toFixed(2)
  const svg = el.querySelector('svg')
  Object.assign(svg.style, { width: `${w * view.scale}px`, height: `${h * view.scale}px`,
                             background: view.image ? `url(${view.image}) 0 0 / 100% 100%` : 'white' })
  svg.innerHTML = picture(view, boxes, chosen, table)
  el.querySelector('.shades').style.background = `linear-gradient(to right, ${view.shades.join()})`
  el.querySelector('table').innerHTML = rows(view.columns, boxes, chosen, table)
}

function render({ model, el }) {
  el.classList.add('pisa-explorer')
  el.innerHTML = HTML
  for (const e of el.querySelectorAll('input, select, button')) e.dataset.lmSuppressShortcuts = true // of JupyterLab
  const part = name => el.querySelector(`[name=${name}]`)
  el.querySelector('svg').onpointerdown = e => drag(model, e)
  el.querySelector('table').onpointerdown = e => { // not onclick: a row may be drawn anew before its release
    const row = e.target.closest('[data-box]')
    if (row) set(model, { chosen: row.dataset.box })
  }
  part('shown').onchange = e => set(model, { shown: e.target.value })
  part('image').onchange = e => set(model, { image: Math.max(0, Math.round(e.target.value)) })
  part('box').onchange = e => set(model, { chosen: e.target.value })
  PLACE.forEach((name, k) => { part(name).oninput = e => slide(model, k, e.target.valueAsNumber) })
  for (const name of ['gamma', 'beta']) part(name).oninput = e => set(model, { [name]: e.target.valueAsNumber })
  part('add').onclick = () => add(model)
  part('remove').onclick = () => remove(model)
  part('reset').onclick = () => set(model, { resets: model.get('resets') + 1 })
  model.on('change', () => draw(model, el, part))
  draw(model, el, part)
}

export default { render }
