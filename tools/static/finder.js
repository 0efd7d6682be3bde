// Search for names and titles: they stand above what Sphinx finds in the text. `sitePages` (names.js) has each page as
// [title, module, address, line], `siteEntries` each name and heading as [kind, text, number of its page, anchor, line].

// words that people type, and the words that the site uses for the same thing
const SAME = {
  save: ['save_pretrained', 'ship'], load: ['load_pretrained', 'open_lm'], 'fine-tune': ['sft', 'finetune'],
  finetuning: ['sft', 'finetune'], 'fine-tuning': ['sft', 'finetune'], rlhf: ['dpo', 'grpo', 'preferences'],
  rl: ['grpo', 'rewards'], lora: ['adapters'], peft: ['adapters'], gguf: ['export', 'ship'], deploy: ['ship', 'serve'],
  quantization: ['quantise'], quantize: ['quantise'], deduplicate: ['dedup', 'duplicates'], multigpu: ['parallel'],
  ddp: ['parallel'], fsdp: ['parallel'], resume: ['checkpoint'], checkpointing: ['recompute', 'checkpoint'],
  benchmark: ['tasks', 'choices'], bpe: ['tokenizer'], lr: ['learning', 'rate', 'lr_find'], gpu: ['devices', 'memory'],
  cost: ['plan', 'costs'], chat: ['chat', 'conversations'], train: ['lm_learner', 'pretrain'],
}
const WEIGHT = { page: 3, name: 2, heading: 1 }
const MOST = 15

// everything that can be found, as [kind, text, module or page, address, one line]
const siteNames = [
  ...sitePages.map(([title, module, address, line]) => ['page', title, module, address, line]),
  ...siteEntries.map(([kind, text, at, anchor, line]) => {
    const [title, module, address] = sitePages[at]
    return [kind, text, kind === 'name' ? module : title, `${address}#${anchor}`, line]
  }),
]

const wordsOf = text => text.replace(/([a-z])([A-Z])/g, '$1 $2').toLowerCase().split(/[^a-z0-9]+/).filter(Boolean)

// the number of letters to add, drop, change or swap with the next; a large number once there are more than `most`
function distance(a, b, most) {
  if (Math.abs(a.length - b.length) > most) return 99
  let before = [], row = [...Array(b.length + 1).keys()]
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const changed = row[j - 1] + (a[i - 1] !== b[j - 1])
      next[j] = Math.min(changed, row[j] + 1, next[j - 1] + 1)
      const isSwap = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      if (isSwap) next[j] = Math.min(next[j], before[j - 2] + 1)
    }
    before = row
    row = next
  }
  return row[b.length]
}

const allowed = word => word.length < 4 ? 0 : word.length < 8 ? 1 : 2

// how well one word of a query fits the words of an entry: 1 for the word itself, less for a beginning or a misspelling
function fit(word, words) {
  if (words.includes(word)) return 1
  if (word.length > 2 && words.some(w => w.startsWith(word))) return .8
  const isNear = words.some(w => distance(word, w, allowed(word)) <= allowed(word))
  return isNear ? .6 : 0
}

// how well an entry fits a query: 0 if it lacks one of its words
function score(query, entry) {
  const [kind, text, module, , line] = entry
  const typed = query.toLowerCase()
  const shown = text.toLowerCase()
  if (shown === typed) return 20 + WEIGHT[kind]
  if (kind === 'page' && wordsOf(text).join(' ').startsWith(wordsOf(query).join(' ') + ' ')) return 18
  const misspelt = kind === 'name' && typed.length > 5 ? distance(typed, shown, 2) : 99
  if (misspelt <= 2) return 16 - misspelt
  const inText = wordsOf(text), inLine = wordsOf(`${line} ${module}`)
  let sum = 0
  for (const word of wordsOf(query)) {
    const near = [word, ...(SAME[word] || [])]
    const best = Math.max(...near.map((w, i) => fitOf(w, inText, inLine, shown) * (i ? .95 : 1)))
    if (!best) return 0
    sum += best
  }
  const n = wordsOf(query).length
  const isMethod = kind === 'name' && text.includes('.')
  return 10 * sum / n + WEIGHT[kind] - inText.length / 20 - (isMethod ? 2 : 0)
}

function fitOf(word, inText, inLine, shown) {
  if (shown === word) return 1.2
  return Math.max(fit(word, inText), .4 * (inLine.includes(word) ? 1 : 0))
}

function found(query) {
  const scored = siteNames.map(entry => [score(query, entry), entry]).filter(([s]) => s > 0)
  scored.sort(([a], [b]) => b - a)
  return scored.slice(0, MOST).map(([, entry]) => entry)
}

function item([kind, text, module, address, line]) {
  const li = document.createElement('li')
  const link = document.createElement('a')
  link.href = address
  link.textContent = text
  const rest = document.createElement('span')
  rest.textContent = ` ${kind === 'page' ? '' : module}${line ? `: ${line}` : ''}`
  li.append(link, rest)
  return li
}

document.addEventListener('DOMContentLoaded', () => {
  const query = new URLSearchParams(location.search).get('q') || ''
  const place = document.getElementById('search-results')
  if (!query.trim() || !place) return
  const entries = found(query)
  if (!entries.length) return
  const section = document.createElement('section')
  section.className = 'names-found'
  section.setAttribute('aria-label', 'Names and titles')
  const heading = document.createElement('h2')
  heading.textContent = 'Names and titles'
  const list = document.createElement('ul')
  list.append(...entries.map(item))
  section.append(heading, list)
  place.before(section)
})
