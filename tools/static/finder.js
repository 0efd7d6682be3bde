// Search for names and titles: they stand above what Sphinx finds in the text. `sitePages` (names.js) has each page as
// [title, module, address, line, what people ask that it answers], `siteEntries` each name and heading as [kind, text,
// number of its page, anchor, line].

// words that say nothing about what is looked for
const EMPTY = new Set(('a an and are as at be by can do does for from get has have how i in into is it its me much my of on ' +
  'or own s so than that the this to up use using want what when where which who why will with you your').split(' '))
const ENDINGS = /(isations?|ations?|ates?|ated|ating|ises?|ised|ising|ings?|ers?|ors?|ies|ed|es|s|y|e)$/
const WEIGHT = { page: 3, name: 2, heading: 1 }
const MOST = 15

// everything that can be found, as [kind, text, module or page, address, one line, what it answers]
const siteNames = [
  ...sitePages.map(([title, module, address, line, asked]) => ['page', title, module, address, line, asked]),
  ...siteEntries.map(([kind, text, at, anchor, line]) => {
    const [title, module, address] = sitePages[at]
    return [kind, text, kind === 'name' ? module : title, `${address}#${anchor}`, line, []]
  }),
]

// a function that computes each of its results once
function remembered(f) {
  const known = new Map()
  return text => {
    if (!known.has(text)) known.set(text, f(text))
    return known.get(text)
  }
}

const wordsOf = remembered(text => text.replace(/([a-z])([A-Z])/g, '$1 $2').toLowerCase().split(/[^a-z0-9]+/).filter(Boolean))

// the words of a query that say something; all of them if none does
function asked(query) {
  const words = wordsOf(query)
  const telling = words.filter(word => !EMPTY.has(word))
  return telling.length ? telling : words
}

// a word without its ending, in British spelling: `tokenized` and `tokeniser` are one
const stem = remembered(word => {
  const british = word.replace(/i[sz](e|i|a)/g, 'is$1')
  const cut = british.replace(ENDINGS, '')
  return cut.length > 2 ? cut : british
})

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
  if (words.some(w => stem(w) === stem(word))) return .95
  if (word.length > 2 && words.some(w => w.startsWith(word))) return .8
  const isNear = words.some(w => distance(word, w, allowed(word)) <= allowed(word))
  return isNear ? .6 : 0
}

const stems = remembered(text => asked(text).map(stem).join(' '))

// how well an entry fits a query: 0 if it has less than half of its words
function score(query, entry) {
  const [kind, text, module, , line, answers] = entry
  const typed = query.trim().toLowerCase()
  const shown = text.toLowerCase()
  if (shown === typed) return 20 + WEIGHT[kind]
  if (answers.includes(typed)) return 19.5
  if (answers.some(answer => stems(answer) === stems(typed))) return 19
  if (kind === 'page' && wordsOf(text).join(' ').startsWith(wordsOf(query).join(' ') + ' ')) return 18
  const misspelt = kind === 'name' && typed.length > 5 ? distance(typed, shown, 2) : 99
  if (misspelt <= 2) return 16 - misspelt
  const inText = wordsOf(text), inLine = wordsOf(`${line} ${module}`), inAnswers = wordsOf(answers.join(' '))
  const words = asked(query)
  const fits = words.map(word => Math.max(fit(word, inText), .85 * fit(word, inAnswers), .4 * inLine.includes(word)))
  const matched = fits.filter(Boolean).length / words.length
  if (matched <= .5) return 0
  const mean = fits.reduce((sum, one) => sum + one, 0) / words.length
  const isMethod = kind === 'name' && text.includes('.')
  return matched * (10 * mean + WEIGHT[kind] - inText.length / 20 - (isMethod ? 2 : 0))
}

function found(query) {
  const scored = siteNames.map(entry => [score(query, entry), entry]).filter(([s]) => s > 0)
  scored.sort(([a], [b]) => b - a)
  return scored.slice(0, MOST).map(([, entry]) => entry)
}

// what stands beside a link: whose name it is, that a page is a chapter, and the one line
function beside(kind, module, address, line) {
  const whose = kind === 'page' && address.startsWith('book/') ? 'chapter' : module
  return [whose, line].filter(Boolean).join(': ')
}

function item([kind, text, module, address, line]) {
  const li = document.createElement('li')
  const link = document.createElement('a')
  link.href = address
  link.textContent = text
  const rest = document.createElement('span')
  rest.textContent = ` ${beside(kind, module, address, line)}`
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
