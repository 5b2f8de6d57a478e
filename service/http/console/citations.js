// Shows what an explanation quotes: marked in the query and the note, and struck out in its step where it is not true.
// All text is set through textContent, so that none of it can become markup.

const CJK = String.raw`[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]`;
const LETTER = String.raw`(?!${CJK})[\p{L}\p{N}]`; // of a script that puts blanks between words
const WORD = new RegExp(`${CJK}|(?:${LETTER})+`, "gu");

// The service compares texts in this form.
export const canonical = (text) => text.normalize("NFC").replace(/\s+/gu, " ").trim();

// Return the text with the citations of this field marked: nodes to append to an element.
export function markField(field, text, citations) {
  const marks = new Array(text.length); // of each character
  const paint = (pattern, kind) => {
    for (const match of text.matchAll(pattern)) marks.fill(kind, match.index, match.index + match[0].length);
  };
  const here = citations.filter((citation) => citation.found && citation.field === field);
  for (const { text: quoted } of here.filter((citation) => !citation.missing)) paint(wholeWords(quoted), "found");
  // Last: a word that the note lacks is one that the query has.
  for (const { text: words } of here.filter((citation) => citation.missing)) {
    for (const [word] of words.matchAll(WORD)) paint(wholeWords(word), "missing");
  }
  const nodes = [];
  for (let start = 0, end; start < text.length; start = end) {
    for (end = start + 1; end < text.length && marks[end] === marks[start];) end += 1;
    nodes.push(element(marks[start] && "mark", marks[start], text.slice(start, end)));
  }
  return nodes;
}

// Return a step's finding with its citations marked or struck out: nodes to append to an element.
export function markFinding(finding, citations) {
  const nodes = [];
  let start = 0;
  for (const { field, text, found, missing } of citations) {
    const lead = missing ? "missing" : field;
    const at = finding.indexOf(`${lead} "${text}"`, start) + lead.length + 2;
    nodes.push(finding.slice(start, at), element(found ? "mark" : "del", missing ? "missing" : "found", text), '"');
    start = at + text.length + 1;
    const why = missing ? "a word of it is in the note, or not in the query" : `it is not in the ${field}`;
    if (!found) nodes.push(element("span", "bad", ` (not true: ${why})`));
  }
  return [...nodes, finding.slice(start)];
}

function wholeWords(text) {
  const escaped = text.replace(/[\\^$.*+?()[\]{}|/]/gu, String.raw`\$&`);
  return new RegExp(`(?<!${LETTER})${escaped}(?!${LETTER})`, "giu");
}

function element(name, className, text) {
  if (!name) return text;
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}
