// The page's one script: it defines the elements that index.html uses.

import { showIcon } from "./style/icon.js";
import { clearKept } from "./engine/kept.js";
import { keepForOffline } from "./engine/offline.js";
import "./elements/app.js";

showIcon();
keepForOffline();
// Without such storage, in private windows say, nothing can be left in it.
clearKept().catch(() => undefined);
