// The contrast of every text and every meaningful mark of our widgets with what is behind it, as WCAG 2.2 defines it.
() => {
  const MARKS = ".mi-point, .mi-bar, .mi-hist-bar, .mi-curve, .mi-predicted, .mi-dot, .mi-disc, .mi-axis";
  const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
  const brush = canvas.getContext("2d", { willReadFrequently: true });

  function rgba(colour) {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = brush.getImageData(0, 0, 1, 1).data;
    return { rgb: [r, g, b], a: a / 255 };
  }
  const over = (front, alpha, back) => front.map((value, k) => alpha * value + (1 - alpha) * back[k]);

  function behind(element) {
    if (!element) return [255, 255, 255];
    const { rgb, a } = rgba(getComputedStyle(element).backgroundColor);
    return a === 1 ? rgb : over(rgb, a, behind(element.parentElement));
  }
  function luminance(rgb) {
    const [r, g, b] = rgb.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }
  function contrast(colour, element) {
    const back = behind(element);
    const { rgb, a } = rgba(colour);
    const [light, dark] = [luminance(over(rgb, a, back)), luminance(back)].sort((one, other) => other - one);
    return (light + 0.05) / (dark + 0.05);
  }

  const found = [];
  for (const widget of document.querySelectorAll(".mi-widget")) {
    const walker = document.createTreeWalker(widget, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const [text, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
      if (!text || element.closest("title, script, style") || !element.checkVisibility()) continue;
      const style = getComputedStyle(element);
      const colour = element.closest("svg") ? style.fill : style.color;
      const what = `${element.className.baseVal ?? element.className}: ${text.slice(0, 40)}`;
      found.push({ what, isText: /[\p{L}\p{N}]/u.test(text), contrast: contrast(colour, element) });
    }
    for (const mark of widget.querySelectorAll(MARKS)) {
      const style = getComputedStyle(mark);
      const svg = mark.closest("svg");
      const colours = svg ? [mark.tagName === "line" ? style.stroke : style.fill] : [style.backgroundColor, style.borderTopColor];
      const contrasts = colours.map((colour) => contrast(colour, (svg ?? mark).parentElement)); // an edge is enough
      const what = `${svg ? mark.className.baseVal : mark.className}: ${colours}`;
      found.push({ what, isText: false, contrast: Math.max(...contrasts) });
    }
  }
  return found;
}
