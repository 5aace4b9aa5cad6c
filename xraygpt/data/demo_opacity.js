(percent) => { document.documentElement.style.setProperty("--xg-opacity", percent / 100); }
