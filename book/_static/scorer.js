/* How a search ranks: chapters before the glossary and other pages, the library's reference last. The rest is Sphinx's own. */
var Scorer = {
  score: ([docname, , , , score]) =>
    score + (docname.startsWith("notebooks/") ? 20 : docname.startsWith("book/api") ? -20 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
