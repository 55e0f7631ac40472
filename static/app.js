/* Small comforts. Every page works without them. */
(() => {
  "use strict";
  const say = document.body.dataset;

  // Copy: the value of a field or the text of an element; a tick shows that it worked.
  const offerCopies = (part) => {
    for (const place of part.querySelectorAll("[data-copy]")) {
      if (!navigator.clipboard) break;
      place.hidden = false;
      place.querySelector("button").addEventListener("click", async () => {
        const source = document.getElementById(place.dataset.copy);
        await navigator.clipboard.writeText("value" in source ? source.value : source.textContent.trim());
        const use = place.querySelector("use");
        use.setAttribute("href", "#i-check");
        const status = document.createElement("span");
        status.className = "vh";
        status.setAttribute("role", "status");
        status.textContent = say.copied;
        place.append(status);
        setTimeout(() => { use.setAttribute("href", "#i-copy"); status.remove(); }, 2000);
      });
    }
  };
  offerCopies(document);

  // What goes on by itself is asked for again and swapped once it is in another state; its heading
  // is read out. The page says after how many seconds, and 0 when it is over.
  const follow = (part) => {
    const seconds = Number(part.dataset.follow);
    if (seconds) setTimeout(async () => follow(document.hidden ? part : await look(part)), seconds * 1000);
  };
  const look = async (part) => {
    const answer = await fetch(location.href).catch(() => null);
    if (answer?.redirected) location.reload();
    if (!answer?.ok) return part;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(part.id);
    if (!fresh || fresh.dataset.state === part.dataset.state) return part;
    for (const symbol of page.querySelectorAll("symbol")) {
      if (!document.getElementById(symbol.id)) document.querySelector("symbol").after(symbol);
    }
    const focused = part.contains(document.activeElement);
    part.replaceWith(fresh);
    document.querySelector(".head p")?.replaceWith(page.querySelector(".head p") ?? "");
    offerCopies(fresh);
    if (focused) document.getElementById("main").focus();
    document.getElementById(fresh.dataset.say).textContent = fresh.querySelector("h2").textContent;
    return fresh;
  };
  for (const part of document.querySelectorAll("[data-follow]")) follow(part);

  // Leaving a form that was changed asks first. A form shown with errors counts as changed, and so
  // does one that came back from the server with what is not saved yet.
  for (const form of document.querySelectorAll("form[data-leave]")) {
    const written = () => new URLSearchParams(new FormData(form)).toString();
    let before = written();
    let sent = false;
    form.addEventListener("submit", () => { sent = true; });
    form.addEventListener("swapped", () => { before = written(); });
    addEventListener("beforeunload", (event) => {
      const changed = form.dataset.leave === "now" || form.querySelector("[aria-invalid]");
      if (sent || (written() === before && !changed)) return;
      event.preventDefault();
      event.returnValue = say.leave;
    });
  }

  // A builder's buttons change the form on the server. It is swapped in place, what was moved or
  // added takes the focus, and what happened is read out.
  const build = async (form, button) => {
    const typed = new URLSearchParams(new FormData(form));
    typed.append(button.name, button.value);
    form.inert = true;
    const answer = await fetch(form.action, { method: "POST", body: typed }).catch(() => null);
    const usable = answer && !answer.redirected && (answer.ok || answer.status === 422);
    const page = usable && new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page && page.querySelector("form[data-builder]");
    form.inert = false;
    if (!fresh) {
      form.dataset.builder = "";
      return form.requestSubmit(button);
    }
    for (const symbol of page.querySelectorAll("symbol")) {
      if (!document.getElementById(symbol.id)) document.querySelector("symbol").after(symbol);
    }
    form.replaceChildren(...fresh.childNodes);
    form.dataset.leave = fresh.dataset.leave;
    form.dispatchEvent(new Event("swapped"));
    form.querySelector("[autofocus]")?.focus();
    document.getElementById(form.dataset.builder).textContent = fresh.dataset.said;
  };
  for (const form of document.querySelectorAll("form[data-builder]")) {
    form.addEventListener("click", (event) => {
      const button = event.target.closest("button[name=do]");
      if (!button || !form.dataset.builder) return;
      event.preventDefault();
      build(form, button);
    });
    // Alt and an arrow move the rule in which the focus is; Enter among the fields of a mail tries it.
    form.addEventListener("keydown", (event) => {
      const verb = event.altKey && { ArrowUp: "up", ArrowDown: "down" }[event.key];
      const tries = event.key === "Enter" && event.target.matches("#try input");
      if (!verb && !tries) return;
      const button = tries ? form.querySelector("[value=try]") : event.target.closest("li")?.querySelector(`[value^="${verb}:"]`);
      if (!button) return;
      event.preventDefault();
      button.click();
    });
    // An initiator is compared as a whole.
    const limit = (select) => {
      const whole = select.value === "initiator";
      const operator = document.getElementById(select.id.replace(/property$/, "operator"));
      for (const option of operator.options) option.disabled = whole && !option.value.startsWith("is");
      if (operator.selectedOptions[0]?.disabled) operator.value = "is";
    };
    form.addEventListener("change", (event) => {
      if (event.target.id.endsWith("-property")) limit(event.target);
    });
  }

  // The usual port of an encryption, as long as the field holds a usual one: "none 25 ssl 465 tls 587".
  for (const port of document.querySelectorAll("[data-usual]")) {
    const words = port.dataset.usual.split(" ");
    for (const radio of port.closest(".group").querySelectorAll("[type=radio]")) {
      radio.addEventListener("change", () => {
        const at = words.indexOf(radio.value);
        if (at >= 0 && (!port.value.trim() || words.includes(port.value.trim()))) port.value = words[at + 1];
      });
    }
  }

  // Find a site in the switcher.
  for (const finder of document.querySelectorAll("[data-find]")) {
    finder.hidden = false;
    const items = [...document.getElementById(finder.dataset.find).children].slice(1);
    finder.querySelector("input").addEventListener("input", (event) => {
      const wanted = event.target.value.trim().toLowerCase();
      for (const item of items) item.hidden = !item.textContent.toLowerCase().includes(wanted);
    });
  }

  // Relative times count on by themselves, in the words that the server would use.
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  const lang = document.documentElement.lang;
  const long = new Intl.RelativeTimeFormat(lang);
  const tick = () => {
    for (const time of document.querySelectorAll("time[data-ticks]")) {
      const seconds = Math.floor((Date.now() - Date.parse(time.dateTime)) / 1000);
      const [unit, length] = units.find((pair) => seconds >= pair[1]) || [];
      if (!unit || seconds > 30 * 86400) continue;
      const whole = Math.floor(seconds / length);
      time.textContent = time.dataset.ticks === "long"
        ? long.format(-whole, unit)
        : new Intl.NumberFormat(lang, { style: "unit", unit, unitDisplay: "short" }).format(whole);
    }
  };
  setInterval(tick, 30000);

  // The error summary takes the focus, so that it is read out and the keys start there.
  document.getElementById("errors")?.focus();
})();
