// The page's one script: it defines the elements that index.html uses.

import "./elements/app.js";
