// Return the first 30 characters of each element that a selector finds, and the contrast of its text, as WCAG 2 counts it.

// the red, green, blue and opacity of a colour that the browser names
const parts = colour => {
  const [red, green, blue, opacity = 1] = colour.match(/[\d.]+/g).map(Number)
  return [red, green, blue, opacity]
}

// what is seen of a colour over an opaque one
const over = (above, below) => [0, 1, 2].map(i => above[i] * above[3] + below[i] * (1 - above[3]))

// the colour behind an element's text: of all its parents, up to the first opaque one
function ground(element) {
  const layers = []
  for (; element; element = element.parentElement) {
    const colour = parts(getComputedStyle(element).backgroundColor)
    if (colour[3]) layers.push(colour)
    if (colour[3] === 1) break
  }
  return layers.reverse().reduce((below, colour) => over(colour, below), [255, 255, 255])
}

const linear = value => {
  const share = value / 255
  return share <= .04045 ? share / 12.92 : ((share + .055) / 1.055) ** 2.4
}

const luminance = colour => {
  const [red, green, blue] = colour.map(linear)
  return .2126 * red + .7152 * green + .0722 * blue
}

// how much of an element is seen: its own opacity and that of all its parents
function seen(element) {
  let share = 1
  for (; element; element = element.parentElement) share *= Number(getComputedStyle(element).opacity)
  return share
}

return [...document.querySelectorAll(arguments[0])].map(element => {
  const below = ground(element)
  const [red, green, blue, opacity] = parts(getComputedStyle(element).color)
  const text = over([red, green, blue, opacity * seen(element)], below)
  const [lighter, darker] = [luminance(text), luminance(below)].sort((x, y) => y - x)
  return [element.textContent.slice(0, 30), (lighter + .05) / (darker + .05)]
})
